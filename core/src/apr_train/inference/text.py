"""Text from tokens: the bytes behind each token, text as tokens come, and the strings that end it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import decoders
from tokenizers.decoders import DecodeStream

from apr_train.data.special_tokens import END_OF_TEXT
from apr_train.data.tokenizer import Tokenizer


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 is itself, the rest come after U+0100 in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _alphabet()
"""Character of the byte-level alphabet → byte (`bytes_to_unicode` of GPT-2, turned round)."""


def _no_text(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that stand for no text: marked as special, named as bos, eos, …, or an end of text by name."""
    marked = {index for index, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    ends = {index for token in END_OF_TEXT if (index := tokenizer.id(token)) is not None}
    return frozenset(marked | set(tokenizer.special_ids.values()) | ends)


def bytes_of_tokens(tokenizer: Tokenizer) -> list[bytes] | None:
    """The text behind each id, `b""` for special tokens and unused ids; None when the tokenizer does not work on bytes."""
    if not isinstance(tokenizer.backend.decoder, decoders.ByteLevel):
        return None
    special = _no_text(tokenizer)
    return [b"" if index in special else _bytes(tokenizer.token(index) or "") for index in range(tokenizer.size)]


def _bytes(token: str) -> bytes:
    """As the byte-level decoder reads it: by the alphabet, or as it stands when a character is not of it."""
    if all(character in BYTE_OF for character in token):
        return bytes(BYTE_OF[character] for character in token)
    return token.encode("utf-8")


class TextStream:
    """Ids one at a time → the text that is certain so far; a character cut between two tokens waits for its rest.

    The pieces add up to what `Tokenizer.decode(ids, skip_special=True)` gives for all ids at once. One decoder takes text
    back: byte fallback makes U+FFFD of a whole run of byte tokens when one of them turns out to be no UTF-8. What was
    given stays then, and the stream goes on with the tokens behind it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._begin()

    def _begin(self) -> None:
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._settled = self._given = 0  # ids whose text was given, and its length

    def push(self, index: int) -> str:
        """The text that one more id makes certain; often empty."""
        try:
            return self._step(index)
        except Exception:  # tokenizers raises Exception itself when the text before has changed
            waiting = self._ids[self._settled :]
            self._begin()
            return "".join(map(self._step, waiting))

    def _step(self, index: int) -> str:
        self._ids.append(index)
        piece = self._decoder.step(self._tokenizer.backend, index) or ""
        if piece:
            self._settled, self._given = len(self._ids), self._given + len(piece)
        return piece

    def finish(self) -> str:
        """What is left: bytes that never became a character, as U+FFFD."""
        return self._tokenizer.decode(self._ids, skip_special=True)[self._given :]


class StopStrings:
    """Text piece by piece → the text in front of the first stop string; what may be the start of one is held back."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that was met."""

    def push(self, piece: str) -> str:
        """The text that is certainly in front of every stop string; nothing once one was met."""
        if self.found is not None:
            return ""
        text = self._held + piece
        hits = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if hits:
            place, self.found = min(hits)
            self._held = ""
            return text[:place]
        keep = max(self._beginnings(text), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _beginnings(self, text: str) -> Iterator[int]:
        """Lengths of the ends of `text` that a stop string begins with."""
        for stop in self._stops:
            yield from (size for size in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:size]))

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

"""What the data path asks of a tokenizer and of whoever watches it: nothing more, so that tests can bring their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

StageProgress = Callable[[str, int, int], None]
"""Called with the stage (`read`, then `tokenise` unless the cache has the tokens), the bytes done, and the bytes in all."""

_STRIDE = 1 << 20


def byte_counter(progress: StageProgress | None, stage: str, total: int) -> Callable[[int], None]:
    """A function that is told how many more bytes are done, however few, and reports a megabyte at a time."""
    done = told = 0

    def count(more: int) -> None:
        nonlocal done, told
        done += more
        if progress is not None and (done - told >= _STRIDE or done == total):
            told = done
            progress(stage, done, total)

    return count


Boundary = Literal["word", "token"]
"""What ends between two texts: a word of the pre-tokenizer, across which no token can reach; or, inside a word, a token."""


class TextJudge(Protocol):
    """Whoever can say where a text may be cut."""

    def boundary(self, left: str, right: str, *, parse_special: bool) -> Boundary | None:
        """What ends between two texts; None where the ids of the two are not those of the two as one text."""
        ...


class TokenizerLike(TextJudge, Protocol):
    """A tokenizer as the data path sees it."""

    @property
    def size(self) -> int:
        """Largest id + 1, added tokens included."""
        ...

    @property
    def special_ids(self) -> Mapping[str, int]:
        """`bos`, `eos`, `pad`, `mask`, `unk` → id, as far as the source says."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The added tokens that are marked as special, text → id: control tokens, which a text does not mean by itself."""
        ...

    @property
    def start_ids(self) -> tuple[int, ...]:
        """The ids that the tokenizer itself puts in front of a text (a bos), none for most."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides how text is encoded; part of the token cache's key."""
        ...

    def id(self, token: str) -> int | None:
        """The id of a token string; None if there is none."""
        ...

    def encode_batch(self, texts: Sequence[str], *, parse_special: bool = False) -> list[list[int]]:
        """Token ids of each text, without any special token added around it.

        `parse_special`: whether text that spells a special token becomes that token, or is text as any other.
        """
        ...

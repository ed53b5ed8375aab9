"""A TokenizerSpec made to work: text ↔ ids through the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_train.checkpoint.header import TokenizerSpec
from apr_train.checkpoint.tokenizer_json import check_merges, tokenizer_json
from apr_train.data.protocols import Boundary
from apr_train.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers


_PROBE = "a"
"""A text to see what a tokenizer puts around one."""


class Tokenizer:
    """Text to ids and back; make it with `build_tokenizer`."""

    def __init__(self, spec: TokenizerSpec, content: Mapping[str, Any], backend: tokenizers.Tokenizer) -> None:
        self.spec = spec
        self.backend = backend
        self._content = content

    @property
    def size(self) -> int:
        """Largest id + 1, added tokens included."""
        return self.spec.size

    @property
    def special_ids(self) -> Mapping[str, int]:
        """`bos`, `eos`, `pad`, `mask`, `unk` → id, as far as the source says."""
        return self.spec.special_ids

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how text is encoded, lower-case hex."""
        canonical = json.dumps(self._content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The added tokens that are marked as special, text → id."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    @cached_property
    def start_ids(self) -> tuple[int, ...]:
        """The ids that the post-processor puts in front of a text; none where it puts nothing there."""
        plain, around = self.encode(_PROBE), self.encode(_PROBE, special=True)
        places = range(len(around) - len(plain) + 1)
        first = next((place for place in places if around[place : place + len(plain)] == plain), 0)
        return tuple(around[:first])

    def encode(self, text: str, *, special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any Unicode text.
            special: with what the tokenizer puts around a text (bos, `<s> … </s>`).
            parse_special: whether text that spells a special token becomes that token.
        """
        self.backend.encode_special_tokens = not parse_special
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    def encode_batch(self, texts: Sequence[str], *, parse_special: bool = False) -> list[list[int]]:
        """Token ids of each text of a corpus, in parallel over the cores, with nothing around it."""
        self.backend.encode_special_tokens = not parse_special
        return [list(item.ids) for item in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_places(self, texts: Sequence[str], *, parse_special: bool) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """As `encode_batch`, each id with the characters that it stands for: the first one, and the one behind the last."""
        self.backend.encode_special_tokens = not parse_special
        return [
            (list(item.ids), list(item.offsets)) for item in self.backend.encode_batch(list(texts), add_special_tokens=False)
        ]

    def boundary(self, left: str, right: str, *, parse_special: bool) -> Boundary | None:
        """What ends between two texts, by the tokenizer's own word."""
        self.backend.encode_special_tokens = not parse_special
        return boundary(self.backend, left, right)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD, ids without a token vanish."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special))

    def token(self, index: int) -> str | None:
        """The string of an id as the vocabulary has it, in the byte-level alphabet; None if no token has it."""
        return self.backend.id_to_token(index)

    def id(self, token: str) -> int | None:
        """The id of a token string; None if there is none."""
        return self.backend.token_to_id(token)

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json` that encodes the same."""
        path.write_text(json.dumps(self._content, ensure_ascii=False, indent=2), encoding="utf-8")


def boundary(backend: tokenizers.Tokenizer, left: str, right: str) -> Boundary | None:
    """What ends between two texts: a word where normalizer and pre-tokenizer make of the two what they make of the whole.

    A tokenizer without a pre-tokenizer takes a whole text as one word.
    """
    texts = (left + right, left, right)
    whole, before, after = (backend.encode(text, add_special_tokens=False).ids for text in texts)
    if whole != before + after:
        return None
    words = [_words(backend, text) for text in texts]
    return "word" if words[0] == words[1] + words[2] else "token"


def _words(backend: tokenizers.Tokenizer, text: str) -> list[str]:
    normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [normal]
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def build_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Make a tokenizer that encodes as its source does.

    Raises:
        TokenizerError: for SentencePiece and other kinds that metadata cannot hold, an unknown pre-tokenizer type, a
            vocabulary that the `tokenizers` library refuses, or one in which an added token has another id than declared.
    """
    import tokenizers

    content = tokenizer_json(spec)
    check_merges(content, spec.origin)
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=True))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a fault in the file is a plain Exception, or a Rust panic, which is no Exception
        raise TokenizerError(f"the tokenizers library refuses it: {error}", where=spec.origin) from error
    backend.no_truncation()
    backend.no_padding()
    for token in spec.added_tokens:
        found = backend.token_to_id(token.content)
        if found != token.id:
            raise TokenizerError(
                f"the added token {token.content!r} has another id", where=spec.origin, expected=token.id, found=found
            )
    return Tokenizer(spec, content, backend)

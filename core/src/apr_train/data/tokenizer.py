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
from apr_train.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers


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

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text; with `special`, with what the tokenizer puts around a text (bos, `<s> … </s>`)."""
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    def encode_batch(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of each text, in parallel over the cores."""
        return [list(item.ids) for item in self.backend.encode_batch_fast(list(texts), add_special_tokens=special)]

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
    backend.encode_special_tokens = False
    for token in spec.added_tokens:
        found = backend.token_to_id(token.content)
        if found != token.id:
            raise TokenizerError(
                f"the added token {token.content!r} has another id", where=spec.origin, expected=token.id, found=found
            )
    return Tokenizer(spec, content, backend)

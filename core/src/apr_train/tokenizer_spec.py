"""A tokenizer as data, before any library builds it: what a header can say about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, field, frozen


@frozen(kw_only=True)
class AddedToken:
    """One token outside the BPE vocabulary's merges, with the flags that `tokenizers` keeps."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@frozen(kw_only=True)
class TokenizerSpec:
    """A byte-level BPE tokenizer's data, or a whole `tokenizer.json`.

    Exactly one of the two: `vocabulary` and `merges` (from `.apr` or GGUF metadata), or `json` (the parsed
    content of a `tokenizer.json`, which wins because it says everything).
    """

    vocabulary: tuple[str, ...] = field(default=(), repr=False)
    """Token strings in the byte-level alphabet; the index is the id."""
    merges: tuple[str, ...] = field(default=(), repr=False)
    """`"a b"` in rank order."""
    pre_type: str | None = None
    """GGUF's `tokenizer.ggml.pre`: `gpt-2`, `qwen2`, `smollm`, `llama-bpe`, `default`."""
    json: Mapping[str, Any] | None = field(default=None, repr=False)
    added_tokens: tuple[AddedToken, ...] = field(default=(), repr=False)
    special_ids: Mapping[str, int] = Factory(dict)
    """`bos`, `eos`, `pad`, `mask`, `unk` → id, as far as the source says."""
    chat_template: str | None = field(default=None, repr=False)
    size: int = 0
    """Largest id + 1, added tokens included."""
    origin: str = ""
    """Where it came from, for messages: the path and the kind of source."""

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
    """A byte-level BPE tokenizer's data, or a whole `tokenizer.json`; or the name of a kind that cannot be built.

    Exactly one of the two: `vocabulary` and `merges` (from `.apr` or GGUF metadata), or `json` (the parsed
    content of a `tokenizer.json`, which wins because it says everything).
    """

    model: str = "bpe"
    """`bpe`, or another kind by name (`sentencepiece`, `wordpiece`), which is refused when it is built without `json`."""
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
    add_bos: bool = False
    """Whether `bos` is put in front of a text that is encoded with special tokens; `json` says it itself."""
    notes: tuple[str, ...] = ()
    """What was concluded because the source does not say, one sentence each."""
    origin: str = ""
    """Where it came from, for messages: the path and the kind of source."""

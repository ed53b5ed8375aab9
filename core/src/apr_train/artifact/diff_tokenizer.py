"""Do two tokenizers give the same ids? What can be said without building them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.artifact.diff import Field
from apr_train.checkpoint.tokenizer_json import tokenizer_json
from apr_train.checkpoint.tokenizer_spec import TokenizerSpec
from apr_train.errors import AprTrainError

_SHOWN = 3


def tokenizer_diff(a: TokenizerSpec | None, b: TokenizerSpec | None) -> list[Field]:
    """What is not the same: presence, kind, special ids, strings of ids, merges.

    How the text is cut before (the pre-tokenizer) is compared only where both files spell it out.
    """
    if a is None or b is None:
        return [] if a is b else [Field(name="tokenizer", a=_size(a), b=_size(b))]
    fields = [Field(name="special ids", a=dict(a.special_ids), b=dict(b.special_ids))]
    try:
        mine, other = tokenizer_json(a), tokenizer_json(b)
    except AprTrainError:  # of a kind that cannot be rebuilt: the data itself is compared
        fields += [Field(name="kind", a=a.model, b=b.model), Field(name="vocabulary", a=a.vocabulary, b=b.vocabulary)]
        return [_short(item) for item in fields if item.a != item.b]
    fields += [Field(name="tokens", a=_tokens(mine), b=_tokens(other)), Field(name="merges", a=_merges(mine), b=_merges(other))]
    if a.json is not None and b.json is not None:
        fields += [Field(name=key, a=mine.get(key), b=other.get(key)) for key in ("normalizer", "pre_tokenizer")]
    return [_short(item) for item in fields if item.a != item.b]


def _size(spec: TokenizerSpec | None) -> str:
    return "none" if spec is None else f"{spec.size} tokens"


def _tokens(content: Mapping[str, Any]) -> dict[int, str]:
    """Id → string, added tokens included."""
    vocabulary = content.get("model", {}).get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, Mapping) else ((item[0], i) for i, item in enumerate(vocabulary))
    found = {index: token for token, index in pairs}
    return found | {item["id"]: item["content"] for item in content.get("added_tokens") or ()}


def _merges(content: Mapping[str, Any]) -> list[str]:
    """Each as `a b`, whichever way it is written."""
    merges = content.get("model", {}).get("merges") or ()
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _short(item: Field) -> Field:
    """Long values as the number of entries and the first that are not the same."""
    if isinstance(item.a, dict) and item.name == "tokens":
        keys = sorted(key for key in item.a.keys() | item.b.keys() if item.a.get(key) != item.b.get(key))
    elif isinstance(item.a, list | tuple):
        longest = max(len(item.a), len(item.b))
        keys = [i for i in range(longest) if item.a[i : i + 1] != item.b[i : i + 1]]
    else:
        return item
    return Field(name=f"{item.name} ({len(keys)} differ)", a=_some(item.a, keys), b=_some(item.b, keys))


def _some(values: Any, keys: list[int]) -> str:
    held = values if isinstance(values, dict) else dict(enumerate(values))
    shown = ", ".join(f"{key}: {held[key]!r}" if key in held else f"{key}: –" for key in keys[:_SHOWN])
    return f"{len(held)} in all; {shown}"

"""A whole `tokenizer.json` ↔ the flat vocabulary and merges that `.apr` metadata holds, plus the rest of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.checkpoint.pre_tokenizers import pre_type_of
from apr_train.errors import FormatError

JOINT = " "
MAX_HOLES = 4096
"""More ids without a token than this and the vocabulary is not written as a list."""


def flatten(content: Mapping[str, Any]) -> tuple[list[str], list[str], str | None, dict[str, Any]]:
    """Vocabulary by id, merges as `"a b"`, pre-tokenizer type, and what our own metadata key must hold besides.

    A tokenizer that does not fit (no BPE, merges of parts with spaces, ids far apart) gives empty lists and stays whole.
    """
    model = content["model"]
    merges = _joined(model.get("merges")) if model.get("type", "BPE") == "BPE" else None
    tokens = _by_id(content)
    if merges is None or tokens is None or not isinstance(model.get("vocab"), Mapping):
        return [], [], None, {"json": dict(content)}
    size = max(tokens, default=-1) + 1
    unused = [index for index in range(size) if index not in tokens]
    in_model = set(model["vocab"].values())
    rest = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
    return (
        [tokens.get(index, f"[PAD{index}]") for index in range(size)],
        merges,
        pre_type_of(content),
        {
            "json": {**content, "model": rest},
            "unused": unused,
            "added_only": sorted(index for index in tokens if index not in in_model),
        },
    )


def rebuild(
    ours: Mapping[str, Any], vocabulary: tuple[str, ...] | None, merges: tuple[str, ...] | None, path: str
) -> dict[str, Any]:
    """The `tokenizer.json` that `flatten` took apart.

    Raises:
        FormatError: when the parts do not belong together.
    """
    content = dict(ours["json"])
    model = content.get("model")
    if not isinstance(model, Mapping):
        raise FormatError("the tokenizer has no model", path=path, field="tokenizer.apr_train")
    if "vocab" in model:
        return content
    if vocabulary is None or merges is None:
        raise FormatError("the tokenizer's vocabulary or merges are missing", path=path, field="tokenizer.vocabulary")
    left_out = {index for key in ("unused", "added_only") for index in _indices(ours.get(key))}
    vocab = {token: index for index, token in enumerate(vocabulary) if index not in left_out}
    content["model"] = {**model, "vocab": vocab, "merges": [_pair(merge, path) for merge in merges]}
    return content


def _indices(value: Any) -> list[int]:
    return [item for item in value if isinstance(item, int)] if isinstance(value, list) else []


def _pair(merge: str, path: str) -> list[str]:
    parts = merge.split(JOINT)
    if len(parts) != 2:
        raise FormatError("a merge is not a pair", path=path, field="tokenizer.merges", expected="'a b'", found=repr(merge))
    return parts


def _joined(merges: Any) -> list[str] | None:
    """Merges as `"a b"`; None when a part holds a space, or when they are no merges at all."""
    joined = []
    for merge in merges if isinstance(merges, list) else ():
        parts = merge.split(JOINT) if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) and JOINT not in part for part in parts)
        ):
            return None
        joined.append(JOINT.join(parts))
    return joined


def _by_id(content: Mapping[str, Any]) -> dict[int, str] | None:
    vocab = content["model"].get("vocab")
    if not isinstance(vocab, Mapping):
        return None
    tokens = {index: token for token, index in vocab.items()}
    if len(tokens) != len(vocab):
        return None
    for added in content.get("added_tokens") or ():
        if tokens.setdefault(added["id"], added["content"]) != added["content"]:
            return None
    if min(tokens, default=0) < 0 or max(tokens, default=0) + 1 - len(tokens) > MAX_HOLES:
        return None
    return tokens

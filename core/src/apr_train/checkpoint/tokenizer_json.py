"""A TokenizerSpec ↔ the content of a `tokenizer.json`: dictionaries only, the `tokenizers` library is not needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from apr_train.checkpoint.pre_tokenizers import PRE_TOKENIZERS, canonical_pre_type
from apr_train.checkpoint.tokenizer_spec import AddedToken, TokenizerSpec
from apr_train.errors import FormatError, TokenizerError

PADDING = re.compile(r"\[PAD\d+\]")
"""How llama.cpp's converter spells rows of the embedding that have no token."""
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


def tokenizer_json(spec: TokenizerSpec) -> dict[str, Any]:
    """The content of the `tokenizer.json` that encodes as `spec` says.

    Raises:
        TokenizerError: for a tokenizer that is no byte-level BPE, or a pre-tokenizer type that is not known.
    """
    if spec.json is not None:
        return dict(spec.json)
    check_buildable(spec)
    cut = PRE_TOKENIZERS[_pre_type(spec)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token) for token in sorted(spec.added_tokens, key=lambda token: token.id)],
        "normalizer": cut.normalizer,
        "pre_tokenizer": cut.pre_tokenizer,
        "post_processor": _post_processor(spec),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut.ignore_merges,
            "vocab": {token: index for index, token in enumerate(spec.vocabulary) if token},
            "merges": split_merges(spec.merges, spec.origin),
        },
    }


def check_buildable(spec: TokenizerSpec) -> None:
    """See that it is a kind that metadata can hold, or a whole `tokenizer.json`.

    Raises:
        TokenizerError: naming the kind.
    """
    if spec.json is None and spec.model != "bpe":
        raise TokenizerError(
            f"a {spec.model} tokenizer cannot be rebuilt from a checkpoint's metadata",
            where=spec.origin,
            expected="a byte-level BPE with vocabulary and merges",
            found=spec.model,
            hint="Put the model's tokenizer.json beside the file, or import from a Hugging Face folder.",
        )


def _pre_type(spec: TokenizerSpec) -> str:
    known = canonical_pre_type(spec.pre_type or "default")
    if known is None:
        raise TokenizerError(
            "unknown pre-tokenizer type",
            where=spec.origin,
            expected=f"one of {', '.join(PRE_TOKENIZERS)}",
            found=spec.pre_type,
            hint="Text would be cut in the wrong places: put the model's tokenizer.json beside the file.",
        )
    return known


def split_merges(merges: Iterable[str], origin: str) -> list[list[str]]:
    """`"a b"` → `["a", "b"]`.

    Raises:
        TokenizerError: for a merge that is not two parts with one space between.
    """
    pairs = [merge.split(" ") for merge in merges]
    for index, pair in enumerate(pairs):
        if len(pair) != 2 or not all(pair):
            found = repr(" ".join(pair))
            raise TokenizerError("a merge is not a pair", where=f"{origin} [merges {index}]", expected="'a b'", found=found)
    return pairs


def check_merges(content: Mapping[str, Any], origin: str) -> None:
    """See that a BPE's merges join tokens of its vocabulary into tokens of its vocabulary: the library panics over others.

    Raises:
        TokenizerError: naming the first merge that does not.
    """
    model = content.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE":
        return
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, Mapping) or not isinstance(merges, list):
        raise TokenizerError("a BPE without vocabulary or merges", where=origin)
    prefix = model.get("continuing_subword_prefix") or ""
    for index, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not _joins(pair, len(prefix) if isinstance(prefix, str) else 0, vocabulary):
            where = f"{origin} [merges {index}]"
            raise TokenizerError("a merge of or into tokens that the vocabulary lacks", where=where, found=repr(merge)[:80])


def _joins(pair: Any, prefix: int, vocabulary: Mapping[str, Any]) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str):
        return False
    return pair[0] in vocabulary and pair[1] in vocabulary and pair[0] + pair[1][prefix:] in vocabulary


def _added(token: AddedToken) -> dict[str, Any]:
    return {"id": token.id, "content": token.content, **{flag: getattr(token, flag) for flag in FLAGS}}


def _post_processor(spec: TokenizerSpec) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    bos = spec.special_ids.get("bos")
    if not spec.add_bos or bos is None or not 0 <= bos < len(spec.vocabulary):
        return byte_level
    content = spec.vocabulary[bos]
    first = {"SpecialToken": {"id": content, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, first, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {content: {"id": content, "ids": [bos], "tokens": [content]}},
    }
    return {"type": "Sequence", "processors": [byte_level, template]}


def spec_from_json(
    content: Mapping[str, Any],
    origin: str,
    *,
    special_ids: Mapping[str, int] | None = None,
    chat_template: str | None = None,
) -> TokenizerSpec:
    """A spec that holds a whole `tokenizer.json`.

    Raises:
        FormatError: when it is not the content of a tokenizer.json.
    """
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(vocabulary, Mapping | list):
        raise FormatError("not a tokenizer.json", path=origin, expected="model.vocab", found="nothing of that kind")
    added = added_tokens(content.get("added_tokens"), origin)
    ids = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else [len(vocabulary) - 1]
    if not all(isinstance(item, int) for item in ids):
        raise FormatError("token ids are not integers", path=origin, field="model.vocab")
    return TokenizerSpec(
        model=str(model.get("type", "bpe")).lower() if isinstance(model, Mapping) else "bpe",
        json=content,
        added_tokens=added,
        special_ids=dict(special_ids or {}),
        chat_template=chat_template,
        size=max([*ids, *(token.id for token in added)], default=-1) + 1,
        origin=origin,
    )


def added_tokens(entries: Any, origin: str) -> tuple[AddedToken, ...]:
    """The `added_tokens` list of a `tokenizer.json` (or of our own metadata key) as objects.

    Raises:
        FormatError: for an entry without an id and a content.
    """
    if not isinstance(entries, list | None):
        raise FormatError("not a list", path=origin, field="added_tokens", expected="a list", found=type(entries).__name__)
    found = []
    for entry in entries or ():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), int) or not isinstance(entry.get("content"), str):
            raise FormatError("an added token lacks id or content", path=origin, field="added_tokens", found=repr(entry)[:80])
        flags = {flag: bool(entry.get(flag, False)) for flag in FLAGS}
        found.append(AddedToken(id=entry["id"], content=entry["content"], **flags))
    return tuple(found)

"""The content of a `tokenizer.json` made from a TokenizerSpec, read into one, and taken apart: dictionaries, no library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from apr_train.checkpoint.header import AddedToken, TokenizerSpec
from apr_train.checkpoint.pre_tokenizers import PRE_TOKENIZERS, canonical_pre_type, pre_type_of
from apr_train.errors import FormatError, TokenizerError

PADDING = re.compile(r"\[PAD\d+\]")
"""How llama.cpp's converter spells rows of the embedding that have no token."""
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
"""The flags of an added token, in the order in which `tokenizers` writes them."""


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
        "model": bpe_model(
            {token: index for index, token in enumerate(spec.vocabulary) if token},
            split_merges(spec.merges, spec.origin),
            ignore_merges=cut.ignore_merges,
        ),
    }


def bpe_model(vocabulary: Mapping[str, int], merges: list[list[str]], *, ignore_merges: bool = False) -> dict[str, Any]:
    """The `model` of a `tokenizer.json` that is a byte-level BPE."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }


HOW_TO_MAKE = (
    "transformers writes one from the original model's folder: python -c \"from transformers import AutoTokenizer as A; "
    "A.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
)
"""What to do about a tokenizer that is not read without its tokenizer.json."""


def check_buildable(spec: TokenizerSpec) -> None:
    """Check that a tokenizer is of a kind that metadata can hold, or a whole `tokenizer.json`.

    Raises:
        TokenizerError: naming the kind.
    """
    if spec.json is None and spec.model != "bpe":
        raise TokenizerError(
            "a tokenizer of this kind is not read without its tokenizer.json",
            where=spec.origin,
            expected="a tokenizer.json, or a byte-level BPE with vocabulary and merges",
            found=spec.model,
            hint=f"Put the model's tokenizer.json beside the file; {HOW_TO_MAKE}.",
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
    """Check that a BPE's merges join tokens of its vocabulary into tokens of its vocabulary: the library panics over others.

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
    ids = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else [len(vocabulary) - 1] if vocabulary else []
    if wrong := [item for item in ids if not is_id(item)]:
        raise FormatError(
            "a token's id is none", path=origin, field="model.vocab", expected="0, 1, 2, …", found=f"{wrong[0]!r:.80}"
        )
    return TokenizerSpec(
        model=str(model.get("type", "bpe")).lower() if isinstance(model, Mapping) else "bpe",
        json=content,
        added_tokens=added,
        special_ids=dict(special_ids or {}),
        chat_template=chat_template,
        size=max([*ids, *(token.id for token in added)], default=-1) + 1,
        origin=origin,
    )


LARGEST_ID = 1 << 31
"""No token's id is near; the token files and the tokenizers library have 32 bits for one."""


def is_id(value: Any) -> TypeGuard[int]:
    """Whether something that a file has for a token's id can be one."""
    return type(value) is int and 0 <= value < LARGEST_ID


def added_tokens(entries: Any, origin: str) -> tuple[AddedToken, ...]:
    """The `added_tokens` list of a `tokenizer.json` (or of our own metadata key) as objects.

    Raises:
        FormatError: for an entry without an id and a content.
    """
    if not isinstance(entries, list | None):
        raise FormatError("not a list", path=origin, field="added_tokens", expected="a list", found=type(entries).__name__)
    found = []
    for entry in entries or ():
        if not isinstance(entry, Mapping) or not is_id(entry.get("id")) or not isinstance(entry.get("content"), str):
            raise FormatError("an added token lacks id or content", path=origin, field="added_tokens", found=repr(entry)[:80])
        flags = {flag: bool(entry.get(flag, False)) for flag in FLAGS}
        found.append(AddedToken(id=entry["id"], content=entry["content"], **flags))
    return tuple(found)


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

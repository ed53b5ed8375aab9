"""A tokenizer in a checkpoint's metadata: `.apr` keys in both directions, GGUF keys, and a `tokenizer.json` beside the file.

aprender's keys hold vocabulary, merges and the type of the pre-tokenizer. What they do not say goes into one key of our own,
`tokenizer.apr_train`: the added tokens with their flags, the special ids, and for a tokenizer that came as a
`tokenizer.json` all of that file but the vocabulary and the merges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.header import SPECIAL_TOKENS, AddedToken, TokenizerSpec
from apr_train.checkpoint.pre_tokenizers import canonical_pre_type
from apr_train.checkpoint.tokenizer_json import FLAGS, JOINT, PADDING, added_tokens, flatten, is_id, rebuild, spec_from_json
from apr_train.errors import FormatError

CONTROL_LIKE = re.compile(r"<\|.+\|>|</?[a-z_]+>", re.DOTALL)
"""How published models spell control tokens: `<|im_start|>`, `<repo_name>`, `</s>`."""


def infer_added(vocabulary: Sequence[str], merges: Sequence[str], special_ids: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """Tokens of more than one symbol that no merge makes; special are those that look like control tokens.

    Padding rows (`[PAD7]`) are not tokens. A merge's result is the two parts without the space between them.
    """
    made = {merge.replace(" ", "", 1) for merge in merges}
    marked = set(special_ids.values())
    return tuple(
        AddedToken(id=index, content=token, special=index in marked or CONTROL_LIKE.fullmatch(token) is not None)
        for index, token in enumerate(vocabulary)
        if index in marked or (len(token) > 1 and token not in made and not PADDING.fullmatch(token))
    )


KEY = "tokenizer.apr_train"
"""Our one custom key; aprender ignores it."""
PREFIX = "tokenizer."
VOCABULARY = "tokenizer.vocabulary"
MODEL_TYPE = "tokenizer.model_type"
WRITTEN = frozenset({
    VOCABULARY, "tokenizer.merges", "tokenizer.vocab_size", "tokenizer.pre_type", "tokenizer.bos_token_id",
    "tokenizer.eos_token_id", KEY,
})  # fmt: skip
"""The keys that are made of a tokenizer; every other one of a file is kept as it is."""
GGUF_SPECIAL = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "pad": "padding_token_id",
    "unk": "unknown_token_id",
    "mask": "mask_token_id",
    "sep": "seperator_token_id",
    "cls": "cls_token_id",
}
"""GGUF spells `seperator` so."""
GGUF_KINDS = {"gpt2": "bpe", "llama": "sentencepiece", "t5": "sentencepiece", "bert": "wordpiece"}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""GGUF's types of tokens, as far as they are told apart here."""
ADDED_NOTE = "added tokens: those that no merge makes; special: those like <|…|> and the special ids (no flags in the file)"
BOS_BY_DEFAULT = "llama-bpe"
"""The one type at which llama.cpp puts a bos in front when the file does not say."""


def spec_beside(path: Path) -> TokenizerSpec | None:
    """The `tokenizer.json` in the folder of a checkpoint file, if there is one.

    Raises:
        FormatError: when it is there and is not one.
    """
    beside = path.parent / "tokenizer.json"
    return spec_from_json(parse_json(beside), str(beside)) if beside.is_file() else None


def spec_from_apr(path: str, metadata: Mapping[str, Any]) -> TokenizerSpec | None:
    """The tokenizer that `.apr` metadata holds, or None.

    Raises:
        FormatError: when a key is not what it should be.
    """
    vocabulary = _strings(path, metadata, VOCABULARY)
    merges = _strings(path, metadata, "tokenizer.merges")
    ours = metadata.get(KEY)
    if not isinstance(ours, Mapping | None):
        raise FormatError("not an object", path=path, field=KEY, expected="an object", found=type(ours).__name__)
    ours = ours or {}
    template = _template(metadata, "chat_template", "tokenizer.chat_template")
    ids = _ids(metadata, {name: f"{PREFIX}{key}" for name, key in GGUF_SPECIAL.items()})
    ids |= _ids(metadata, {name: f"{PREFIX}{name}_token_id" for name in SPECIAL_TOKENS})
    ids |= _ids(ours.get("special_ids") or {}, None)
    if isinstance(ours.get("json"), Mapping):
        content = rebuild(ours, vocabulary, merges, path)
        spec = spec_from_json(content, f"{path} (metadata)", special_ids=ids, chat_template=template)
        return attrs.evolve(spec, kept=_kept(metadata))
    if vocabulary is None:
        return None
    kind = _kind(metadata, merges)
    if kind != "bpe" or not merges:
        return _other_kind(path, kind, vocabulary, ids, template)
    return _byte_level(path, metadata, ours, vocabulary, merges, ids, template)


def _template(metadata: Mapping[str, Any], *keys: str) -> str | None:
    return next((metadata[key] for key in keys if isinstance(metadata.get(key), str)), None)


def _kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The file's further keys of its tokenizer, and its own word for the kind."""
    kept = {key: value for key, value in metadata.items() if key.startswith(PREFIX) and key not in WRITTEN}
    return {key: value for key, value in kept.items() if (key, value) != (MODEL_TYPE, "bpe")}


def _kind(metadata: Mapping[str, Any], merges: Sequence[str] | None) -> str:
    """By `model_type`, or by `model` where aprender copied a GGUF's keys; else by whether there are merges."""
    named = next((metadata[key] for key in (MODEL_TYPE, "tokenizer.model") if isinstance(metadata.get(key), str)), None)
    if named is None or named.lower() == "bpe":
        return "bpe" if merges else "sentencepiece"
    return GGUF_KINDS.get(named.lower(), named) if merges else "sentencepiece"


def _byte_level(
    path: str,
    metadata: Mapping[str, Any],
    ours: Mapping[str, Any],
    vocabulary: tuple[str, ...],
    merges: tuple[str, ...],
    ids: Mapping[str, int],
    template: str | None,
) -> TokenizerSpec:
    notes: tuple[str, ...] = ()
    types = _token_types(metadata, len(vocabulary))
    if "added_tokens" in ours:
        added = added_tokens(ours["added_tokens"], path)
    elif types is not None:
        added = _marked(vocabulary, types)
    else:
        added = infer_added(vocabulary, merges, ids)
        notes = (ADDED_NOTE if TYPES not in metadata else f"{TYPES} is not one integer a token; {ADDED_NOTE}",)
    pre_type = metadata.get("tokenizer.pre_type")
    if not isinstance(pre_type, str):
        pre_type, note = _pre_type_by_architecture(metadata)
        notes = (*notes, note)
    return TokenizerSpec(
        vocabulary=vocabulary,
        merges=merges,
        pre_type=pre_type,
        added_tokens=added,
        special_ids=ids,
        chat_template=template,
        size=_size(path, vocabulary, _unused(types)),
        add_bos=bool(ours.get("add_bos", metadata.get("tokenizer.add_bos_token") is True)),
        kept=_kept(metadata),
        notes=notes,
        origin=f"{path} (metadata)",
    )


TYPES = "tokenizer.token_type"


def _token_types(metadata: Mapping[str, Any], size: int) -> list[int] | None:
    """GGUF's type of each token; None when the file has none, or not one for each."""
    types = metadata.get(TYPES)
    fits = isinstance(types, list) and len(types) == size and all(type(item) is int for item in types)
    return types if fits else None


def _unused(types: Sequence[int] | None) -> frozenset[int]:
    return frozenset(index for index, kind in enumerate(types or ()) if kind == UNUSED)


def _pre_type_by_architecture(metadata: Mapping[str, Any]) -> tuple[str, str]:
    for key in ("tokenizer.architecture", "architecture"):
        known = canonical_pre_type(str(metadata.get(key)).lower())
        if known is not None:
            return known, f"pre-tokenizer type {known}: by {key} (no tokenizer.pre_type in the file)"
    return "default", "pre-tokenizer type default: the file has no tokenizer.pre_type and its architecture does not tell"


def spec_to_apr(spec: TokenizerSpec) -> dict[str, Any]:
    """The metadata keys that hold a tokenizer: aprender's, and our own one; `spec_from_apr` reads them back."""
    ids = {f"tokenizer.{name}_token_id": spec.special_ids[name] for name in ("bos", "eos") if name in spec.special_ids}
    template = {"chat_template": spec.chat_template} if spec.chat_template is not None else {}
    ours: dict[str, Any] = {"special_ids": dict(sorted(spec.special_ids.items()))}
    if spec.json is None:
        vocabulary, merges, pre_type = list(spec.vocabulary), list(spec.merges), spec.pre_type
        ours |= {"added_tokens": [_entry(token) for token in spec.added_tokens], "add_bos": spec.add_bos}
        if spec.model != "bpe":
            return template
    else:
        vocabulary, merges, pre_type, rest = flatten(spec.json)
        ours |= rest
    keys: dict[str, Any] = {
        VOCABULARY: vocabulary,
        "tokenizer.merges": merges,
        "tokenizer.vocab_size": len(vocabulary),
        MODEL_TYPE: "bpe",
        "tokenizer.pre_type": pre_type,
    }
    keys = {key: value for key, value in keys.items() if value is not None} if vocabulary else {}
    return {**template, **keys, **ids, **spec.kept, KEY: ours}


def _entry(token: AddedToken) -> dict[str, Any]:
    return {"id": token.id, "content": token.content} | {flag: True for flag in FLAGS if getattr(token, flag)}


def spec_from_gguf(path: str, metadata: Mapping[str, Any]) -> TokenizerSpec | None:
    """The tokenizer that GGUF metadata holds, or None.

    Raises:
        FormatError: when a key is not what it should be.
    """
    vocabulary = _strings(path, metadata, "tokenizer.ggml.tokens")
    if vocabulary is None:
        return None
    kind = metadata.get("tokenizer.ggml.model")
    ids = _ids(metadata, {name: f"tokenizer.ggml.{key}" for name, key in GGUF_SPECIAL.items()})
    template = metadata.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    if GGUF_KINDS.get(str(kind)) != "bpe":
        return _other_kind(path, GGUF_KINDS.get(str(kind), str(kind)), vocabulary, ids, template)
    types = metadata.get("tokenizer.ggml.token_type")
    types = types if isinstance(types, list) and len(types) == len(vocabulary) else None
    merges = _strings(path, metadata, "tokenizer.ggml.merges") or ()
    pre = metadata.get("tokenizer.ggml.pre")
    add_bos = metadata.get("tokenizer.ggml.add_bos_token")
    return TokenizerSpec(
        vocabulary=vocabulary,
        merges=merges,
        pre_type=pre if isinstance(pre, str) else "default",
        added_tokens=_marked(vocabulary, types) if types else infer_added(vocabulary, merges, ids),
        special_ids=ids,
        chat_template=template,
        size=_size(path, vocabulary, _unused(types)),
        add_bos=add_bos if isinstance(add_bos, bool) else pre == BOS_BY_DEFAULT,
        notes=() if isinstance(pre, str) else ("pre-tokenizer type default: the file has no tokenizer.ggml.pre",),
        origin=f"{path} (GGUF metadata)",
    )


def _marked(vocabulary: tuple[str, ...], types: list[Any]) -> tuple[AddedToken, ...]:
    return tuple(
        AddedToken(id=index, content=token, special=kind == CONTROL)
        for index, (token, kind) in enumerate(zip(vocabulary, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) and token
    )


def _other_kind(
    path: str, kind: str, vocabulary: tuple[str, ...], ids: Mapping[str, int], template: str | None
) -> TokenizerSpec:
    beside = spec_beside(Path(path))
    if beside is not None:
        return beside
    return TokenizerSpec(model=kind, special_ids=ids, chat_template=template, size=len(vocabulary), origin=f"{path} (metadata)")


def _strings(path: str, metadata: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, list) and key.endswith("merges"):
        value = [JOINT.join(item) if _is_pair(item) else item for item in value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError("not a list of strings", path=path, field=key, expected="a list of strings", found=repr(value)[:60])
    return tuple(value)


def _is_pair(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item)


def _ids(metadata: Any, keys: Mapping[str, str] | None) -> dict[str, int]:
    """Special ids that are integers and not negative; with `keys` None the names are the keys."""
    if not isinstance(metadata, Mapping):
        return {}
    named = {name: metadata.get(key) for name, key in (keys or {str(name): str(name) for name in metadata}).items()}
    return {name: value for name, value in named.items() if is_id(value)}


def _size(path: str, vocabulary: tuple[str, ...], unused: frozenset[int]) -> int:
    """Largest id + 1 of a real token: rows of padding at the end are none."""
    named = [token for token in vocabulary if token]
    if len(set(named)) < len(named):
        raise FormatError("a token is there twice", path=path, field="tokenizer vocabulary", expected="distinct strings")
    size = len(vocabulary)
    while size and (size - 1 in unused or not vocabulary[size - 1] or PADDING.fullmatch(vocabulary[size - 1])):
        size -= 1
    return size

"""Hugging Face's files beside the weights: config.json as the canonical header, and the tokenizer's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from apr_train.checkpoint.companions import TOKENIZER_CONFIG, TOKENS_MAP, template_of, tokenizer_companions
from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.header import SPECIAL_TOKENS, Header, TensorInfo, TokenizerSpec
from apr_train.checkpoint.implied import implied_values
from apr_train.checkpoint.pre_tokenizers import TOKENIZER_CLASSES
from apr_train.checkpoint.tie import tie_from_index
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.checkpoint.vocabulary_files import MERGES, SENTENCEPIECE, VOCABULARY, class_name, read_vocabulary_files
from apr_train.errors import FormatError


def tokenizer_of(folder: Path, config: Mapping[str, Any]) -> TokenizerSpec | None:
    """The folder's tokenizer with its special ids and chat template; None if there is none.

    tokenizer.json, else vocab.json with merges.txt. Of a kind that cannot be read from its own files the spec has the name.

    Raises:
        FormatError: when one of the files is not what it should be.
    """
    config = _with_generation(folder, config)
    path = folder / "tokenizer.json"
    if not path.is_file():
        return _tokenizer_of_other_files(folder, config)
    content = parse_json(path)
    companions = tokenizer_companions(folder)
    named = {**companions.get(TOKENS_MAP, {}), **companions.get(TOKENIZER_CONFIG, {})}
    ids, template = _special_ids(content, named, config), template_of(folder, companions)
    return attrs.evolve(spec_from_json(content, str(path), special_ids=ids, chat_template=template), companions=companions)


TOKENIZER_FILES = ("tokenizer.json", VOCABULARY, MERGES, *SENTENCEPIECE, TOKENIZER_CONFIG, TOKENS_MAP)
"""The files that a folder's tokenizer is kept in; each stands for all of them."""
UNNAMED = f"no tokenizer_class in tokenizer_config.json ({', '.join(TOKENIZER_CLASSES)} are read)"
"""The kind of a vocab.json and merges.txt that nothing says the class of."""


def _tokenizer_of_other_files(folder: Path, config: Mapping[str, Any]) -> TokenizerSpec | None:
    vocabulary, merges = folder / VOCABULARY, folder / MERGES
    if not vocabulary.is_file() or not merges.is_file():
        piece = next((folder / name for name in SENTENCEPIECE if (folder / name).is_file()), None)
        return None if piece is None else TokenizerSpec(model="sentencepiece", origin=str(piece))
    companions = tokenizer_companions(folder)
    settings = companions.get(TOKENIZER_CONFIG, {})
    kind = class_name(config, settings)
    built = None if kind is None else read_vocabulary_files(folder, kind, settings, companions.get(TOKENS_MAP, {}))
    origin = f"{vocabulary} and {merges.name}"
    if built is None:
        return TokenizerSpec(model=kind or UNNAMED, origin=origin)
    ids, template = _special_ids(built.content, built.named, config), template_of(folder, companions)
    spec = spec_from_json(built.content, origin, special_ids=ids, chat_template=template)
    return attrs.evolve(spec, notes=built.notes, companions=companions)


def _special_ids(content: Mapping[str, Any], named: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """By the tokenizer's own settings (tokens), else by config.json and generation_config.json (ids).

    A null in the settings is the tokenizer's word that it has no such token; for the eos the configs are asked all the same,
    since they say what ends a text.
    """
    ids = {}
    for name in SPECIAL_TOKENS:
        if named.get(f"{name}_token", "") is None and name != "eos":
            continue
        token = named.get(f"{name}_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        index = _id_of(content, token) if isinstance(token, str) else config.get(f"{name}_token_id")
        if isinstance(index, list) and index:
            index = index[0]
        if isinstance(index, int) and not isinstance(index, bool) and index >= 0:
            ids[name] = index
    return ids


def _id_of(content: Mapping[str, Any], token: str) -> int | None:
    for added in content.get("added_tokens") or ():
        if isinstance(added, Mapping) and added.get("content") == token:
            return added.get("id")
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    return vocabulary.get(token) if isinstance(vocabulary, Mapping) else None


NEUTRAL_ROPE = "default"
ONE_ACTIVATION = {"swish": "silu", "gelu_python": "gelu"}
"""Second names of an activation in transformers' ACT2FN: the same function."""
_LIFTED = ("rope_theta", "partial_rotary_factor")


def header_from_hf(
    path: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    tokenizer: TokenizerSpec | None = None,
    companions: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Header:
    """The canonical header of a safetensors file or folder; `config` is the parsed config.json, `{}` if there is none.

    Raises:
        FormatError: when config.json says two things about RoPE.
    """
    canonical = canonical_config(config, path)
    values, implied = implied_values(path, canonical, tensors)
    canonical |= values
    classes = config.get("architectures")
    model_type = config.get("model_type")
    return Header(
        path=path,
        format="safetensors",
        hf_class=classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else None,
        architecture=model_type.lower() if isinstance(model_type, str) else None,
        config=canonical,
        tensors=tensors,
        names="hf",
        rope_rows="split-half",
        tie=tie_from_index(canonical, tensors),
        tokenizer=tokenizer,
        findings=implied,
        companions=companions or {},
        provenance={"original_format": "safetensors", **(provenance or {})},
    )


def canonical_config(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Nulls dropped, an activation under its first name, `rope_parameters` taken apart: theta lifted, a scaling that is not
    `default` under `rope_scaling`."""
    plain = {key: value for key, value in config.items() if value is not None and key not in ("architectures", "model_type")}
    if isinstance(act := plain.get("hidden_act"), str):
        plain["hidden_act"] = ONE_ACTIVATION.get(act, act)
    for key in ("rope_scaling", "rope_parameters"):  # one table under its older and its newer name
        parameters = plain.get(key)
        if isinstance(parameters, Mapping):
            del plain[key]
            plain |= _rope_parts(parameters, plain, path, key)
    return plain


def _rope_parts(parameters: Mapping[str, Any], plain: Mapping[str, Any], path: str, table: str) -> dict[str, Any]:
    if any(isinstance(value, Mapping) for value in parameters.values()):
        return {"rope_scaling": {"rope_type": "one RoPE per layer type", **parameters}}
    lifted = {key: parameters[key] for key in _LIFTED if parameters.get(key) is not None}
    for key, value in lifted.items():
        if plain.get(key, value) != value:
            raise FormatError(
                f"config.json has two values of {key}",
                path=path,
                field=f"{table}.{key}",
                expected=plain[key],
                found=value,
            )
    rest = {key: value for key, value in parameters.items() if key not in _LIFTED and value is not None}
    if rest.get("rope_type", rest.get("type", NEUTRAL_ROPE)) == NEUTRAL_ROPE:
        return lifted
    return {**lifted, "rope_scaling": rest}


def _with_generation(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json, and those of generation_config.json that it leaves open."""
    path = folder / "generation_config.json"
    generation = parse_json(path) if path.is_file() else {}
    return generation | {key: value for key, value in config.items() if value is not None}

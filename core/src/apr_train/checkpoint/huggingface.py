"""Hugging Face's files beside the weights: config.json as the canonical header, and the tokenizer's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from apr_train.checkpoint.companions import (
    CONFIG,
    TOKENIZER_CONFIG,
    TOKENS_MAP,
    config_rest,
    template_of,
    tokenizer_companions,
)
from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.header import SPECIAL_TOKENS, Header, TensorInfo, TokenizerSpec
from apr_train.checkpoint.implied import LONGROPE, ORIGINAL_LENGTH, implied_values
from apr_train.checkpoint.pre_tokenizers import TOKENIZER_CLASSES
from apr_train.checkpoint.tie import tie_from_index
from apr_train.checkpoint.tokenizer_json import is_id, spec_from_json
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
        if is_id(index):
            ids[name] = index
    return ids


def _id_of(content: Mapping[str, Any], token: str) -> int | None:
    listed = content.get("added_tokens")
    for added in listed if isinstance(listed, list) else ():
        if isinstance(added, Mapping) and added.get("content") == token:
            return added.get("id")
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    return vocabulary.get(token) if isinstance(vocabulary, Mapping) else None


NEUTRAL_ROPE = "default"
ONE_ACTIVATION = {"swish": "silu", "gelu_python": "gelu"}
"""Second names of an activation in transformers' ACT2FN: the same function."""
SPELLINGS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "norm_epsilon": "layer_norm_eps",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
    "rotary_pct": "partial_rotary_factor",
}
"""Other names of a key that mean the same in every class of transformers that has them (each class's `attribute_map`, and
which norm it gives its epsilon to); a name with several meanings, as norm_eps, is for a family's `config_names`."""
ACTIVATION_SPELLINGS = ("hidden_activation", "activation_function")
"""Other names of hidden_act, where that is not there; where both are, a class reads one of them, and the preflight judges."""
PER_LAYER_TYPE = ("full_attention", "sliding_attention")
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
        FormatError: when config.json has two values of one key.
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
        companions=companions if companions is not None else {CONFIG: config_rest(config)} if config_rest(config) else {},
        provenance={"original_format": "safetensors", **(provenance or {})},
    )


def canonical_config(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Nulls dropped, every key under its first name, an activation too, `rope_parameters` taken apart: theta lifted, a scaling
    that is not `default` under `rope_scaling`, the theta of sliding layers under `rope_local_base_freq`.

    Raises:
        FormatError: two values of one key.
    """
    plain = {key: value for key, value in config.items() if value is not None and key not in ("architectures", "model_type")}
    plain = one_spelling(plain, path)
    if isinstance(act := plain.get("hidden_act"), str):
        plain["hidden_act"] = ONE_ACTIVATION.get(act, act)
    for key in ("rope_scaling", "rope_parameters"):  # one table under its older and its newer name
        parameters = plain.get(key)
        if isinstance(parameters, Mapping):
            del plain[key]
            plain |= _rope_parts(parameters, plain, path, key)
    return _with_original_length(plain, path)


def one_spelling(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The keys under their first names.

    Raises:
        FormatError: two names of one key with two values.
    """
    plain = dict(config)
    for other, name in SPELLINGS.items():
        if other in plain:
            value = plain.pop(other)
            _agree(plain, name, value, path, other)
            plain[name] = value
    for other in ACTIVATION_SPELLINGS:
        if other in plain and "hidden_act" not in plain:
            plain["hidden_act"] = plain.pop(other)
    return plain


def _agree(plain: Mapping[str, Any], key: str, value: Any, path: str, field: str) -> None:
    if plain.get(key, value) != value:
        raise FormatError(f"config.json has two values of {key}", path=path, field=field, expected=plain[key], found=value)


def _with_original_length(plain: dict[str, Any], path: str) -> dict[str, Any]:
    """The config with `original_max_position_embeddings`, which Phi-3 has outside of its scaling, inside."""
    scaling, length = plain.get("rope_scaling"), plain.get(ORIGINAL_LENGTH)
    if not isinstance(scaling, Mapping) or length is None or scaling.get("rope_type", scaling.get("type")) not in LONGROPE:
        return plain
    _agree(scaling, ORIGINAL_LENGTH, length, path, f"rope_scaling.{ORIGINAL_LENGTH}")
    return {**plain, "rope_scaling": {**scaling, ORIGINAL_LENGTH: length}}


def _rope_parts(parameters: Mapping[str, Any], plain: Mapping[str, Any], path: str, table: str) -> dict[str, Any]:
    if any(isinstance(value, Mapping) for value in parameters.values()):
        return _per_layer_type(parameters, plain, path, table)
    lifted = {key: parameters[key] for key in _LIFTED if parameters.get(key) is not None}
    for key, value in lifted.items():
        _agree(plain, key, value, path, f"{table}.{key}")
    rest = {key: value for key, value in parameters.items() if key not in _LIFTED and value is not None}
    if rest.get("rope_type", rest.get("type", NEUTRAL_ROPE)) == NEUTRAL_ROPE:
        return lifted
    return {**lifted, "rope_scaling": rest}


def _per_layer_type(parameters: Mapping[str, Any], plain: Mapping[str, Any], path: str, table: str) -> dict[str, Any]:
    """One table for each type of layer (transformers 5's Gemma 3): full layers' as one for all, of sliding ones the theta.

    Sliding layers with a scaling, or with another share of the head, have no spelling here and are left for the preflight.
    """
    full, sliding = (parameters.get(kind) for kind in PER_LAYER_TYPE)
    parts = [_rope_parts(item, {}, path, table) for item in (full, sliding) if isinstance(item, Mapping)]
    share = [part.get("partial_rotary_factor") for part in parts]
    if set(parameters) != set(PER_LAYER_TYPE) or len(parts) != 2 or "rope_scaling" in parts[1] or share[0] != share[1]:
        base = {key: value for key, value in (parts[0] if parts else {}).items() if key == "rope_theta"}
        return {**base, "rope_scaling": {"rope_type": "one RoPE per layer type", **parameters}}
    found = dict(parts[0])
    if "rope_theta" in parts[1]:
        found["rope_local_base_freq"] = parts[1]["rope_theta"]
    for key in ("rope_theta", "rope_local_base_freq", "partial_rotary_factor"):
        if key in found:
            _agree(plain, key, found[key], path, f"{table}.{key}")
    return found


def _with_generation(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json, and those of generation_config.json that it leaves open."""
    path = folder / "generation_config.json"
    generation = parse_json(path) if path.is_file() else {}
    return generation | {key: value for key, value in config.items() if value is not None}

"""A model's config as files have it: the metadata of an `.apr`, and Hugging Face's config.json. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.checkpoint.apr.keys import ALIASES, ENCODER_EPS, HF_NAMES, PROVENANCE, TYPED
from apr_train.checkpoint.companions import CONFIG, to_apr
from apr_train.checkpoint.dtypes import DTYPES
from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.checkpoint.huggingface import NEUTRAL_ROPE, PER_LAYER_TYPE
from apr_train.checkpoint.implied import LONGROPE, ORIGINAL_LENGTH
from apr_train.checkpoint.rope_rows import SPLIT_HALF_TYPE
from apr_train.checkpoint.tokenizer_metadata import PREFIX, spec_to_apr
from apr_train.errors import FormatError
from apr_train.family.card import FamilyInfo
from apr_train.family.config import ModelConfig
from apr_train.family.writing import nulls, said

_HOUSEKEEPING = frozenset({
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "_name_or_path",
    "rope_parameters",
})  # fmt: skip
"""Hugging Face keys that say nothing about the mathematics, or that the canonical config has under another name."""
_OWN_WORDS = frozenset({"attention_output_bias"})
"""Fields of the core's configs that Hugging Face has no key for: there attention_bias means all four projections."""
_DROPPED = frozenset(
    {*_OWN_WORDS, "architectures", "model_type", "torch_dtype", "dtype", "_name_or_path", "transformers_version"}
)
_LOCAL_THETA = "rope_local_base_freq"


def apr_metadata(
    config: ModelConfig,
    info: FamilyInfo,
    *,
    header: Header | None = None,
    tokenizer: TokenizerSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
    hf_class: str | None = None,
) -> dict[str, Any]:
    """The metadata of an `.apr` file of this model: typed keys, then what else changes the mathematics, then the tokenizer.

    `header` is the checkpoint that the model came from: its config keys that no field of `config` stands for are kept
    under Hugging Face's names, and what is kept of its companion files in a key of ours. Nothing is taken from a clock.
    `total_size` and `param_count` are the writer's.

    Raises:
        FormatError: when a value of `provenance` is no JSON scalar.
    """
    values = _config_values(config, info, header)
    typed = {key: values.pop(name) for key, name in HF_NAMES.items() if name in values}
    eps = values.pop(ENCODER_EPS, None)
    if "rms_norm_eps" not in typed and eps is not None:
        typed["rms_norm_eps"] = eps
    custom = {key: value for key, value in values.items() if key not in TYPED and key not in ALIASES}
    inherited = header.extra if header else {}
    extra = {key: value for key, value in inherited.items() if tokenizer is None or not key.startswith(PREFIX)}
    hidden = {key: value for key, value in values.items() if key not in custom} | nulls(config, info)
    return {
        **extra,
        "model_type": info.model_type,
        **_checked_provenance(provenance if provenance is not None else header.provenance if header else {}),
        "architecture": info.model_type,
        "hf_architecture": hf_class or info.hf_classes[0],
        "hf_model_type": info.model_type,
        **typed,
        **({"rope_type": SPLIT_HALF_TYPE} if info.kind == "decoder" else {}),
        **custom,
        **(spec_to_apr(tokenizer) if tokenizer is not None else {}),
        **to_apr(header, tokenizer, hidden),
    }


def _config_values(config: ModelConfig, info: FamilyInfo, header: Header | None) -> dict[str, Any]:
    own = said(config, info)
    values = {key: value for key, value in (header.config if header else {}).items() if key not in _HOUSEKEEPING}
    values.pop("rms_norm_eps" if ENCODER_EPS in own else ENCODER_EPS, None)
    values |= {key: value for key, value in own.items() if value is not None}
    for key, value in own.items():
        if value is None:
            values.pop(key, None)
    return values


def _checked_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in provenance.items():
        if not isinstance(value, str | int | float | None):
            raise FormatError("provenance is not a plain value", path="metadata", field=key, expected="text", found=repr(value))
    return {key: value for key, value in provenance.items() if key in PROVENANCE and value is not None}


def hf_config(
    config: ModelConfig, info: FamilyInfo, *, header: Header | None = None, hf_class: str | None = None, dtype: str = "F32"
) -> dict[str, Any]:
    """The config.json of an export: loads in transformers 4 (`rope_theta`) and 5 (`rope_parameters`).

    `header` is where the model came from: its further keys (dropout, token ids, explicit nulls, …) are kept. `dtype` is the
    name of most weights' type; it stands under its older name too where the source had that.
    """
    names = info.config_names
    own = {name: value for name, value in said(config, info).items() if value is not None or name in info.config_keys}
    written = _spelled({name: value for name, value in own.items() if name in names or name not in _OWN_WORDS}, info)
    kept = {key: value for key, value in (header.config if header else {}).items() if key not in _DROPPED and "." not in key}
    kept = {key: value for key, value in kept.items() if key not in names or names[key] == key}
    kept.pop("rms_norm_eps" if ENCODER_EPS in own else ENCODER_EPS, None)
    rest = dict(header.companions.get(CONFIG, {})) if header else {}
    if "torch_dtype" in rest:
        rest["torch_dtype"] = DTYPES[dtype].torch
    return {
        "architectures": [hf_class or info.hf_classes[0]],
        "model_type": info.model_type,
        **rest,
        **kept,
        **written,
        **_rope_spellings(own, info),
        "dtype": DTYPES[dtype].torch,
    }


def _spelled(own: Mapping[str, Any], info: FamilyInfo) -> dict[str, Any]:
    """The fields by the class's own keys.

    Raises:
        FormatError: fields that share a key and differ.
    """
    written: dict[str, Any] = {}
    for name, value in own.items():
        key = info.config_names.get(name, name)
        if written.setdefault(key, value) != value:
            raise FormatError(
                "two fields of the config share this key and differ",
                path="config.json",
                field=key,
                expected=f"{written[key]!r}, as the other field",
                found=f"{name} {value!r}",
            )
    return written


def _rope_spellings(own: Mapping[str, Any], info: FamilyInfo) -> dict[str, Any]:
    """`rope_parameters` beside the older keys: one table, or one for each type of layer; and Phi-3's length outside of it."""
    if own.get("rope_theta") is None:
        return {}
    scaling = own.get("rope_scaling") or {"rope_type": NEUTRAL_ROPE}
    share = {key: own[key] for key in ("partial_rotary_factor",) if key in own}
    table = {"rope_theta": own["rope_theta"], **scaling, **share}
    outside = {ORIGINAL_LENGTH: scaling[ORIGINAL_LENGTH]} if scaling.get("rope_type") in LONGROPE else {}
    if _LOCAL_THETA not in (*own, *info.config_keys):
        return {"rope_parameters": table, **outside}
    local = own.get(_LOCAL_THETA)
    sliding = table if local is None else {"rope_theta": local, "rope_type": NEUTRAL_ROPE, **share}
    others = {_LOCAL_THETA: own["rope_theta"]} if local is None else {}
    return {"rope_parameters": dict(zip(PER_LAYER_TYPE, (table, sliding), strict=True)), **others, **outside}

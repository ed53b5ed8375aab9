"""Hugging Face's config.json in both directions: transformers 4 and 5 spellings → the canonical header, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.config import ModelConfig
from apr_train.errors import FormatError
from apr_train.family import FamilyInfo
from apr_train.formats.tie import tie_from_index
from apr_train.header import Header, TensorInfo
from apr_train.tokenizer_spec import TokenizerSpec

NEUTRAL_ROPE = "default"
_LIFTED = ("rope_theta", "partial_rotary_factor")
_OWN_WORDS = frozenset({"attention_output_bias"})
"""Fields of the core's configs that Hugging Face has no key for: there attention_bias means all four projections."""
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_DROPPED = frozenset(
    {*_OWN_WORDS, "architectures", "model_type", "torch_dtype", "dtype", "_name_or_path", "transformers_version"}
)


def header_from_hf(
    path: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    tokenizer: TokenizerSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Header:
    """The canonical header of a safetensors file or folder; `config` is the parsed config.json, `{}` if there is none.

    Raises:
        FormatError: when config.json says two things about RoPE.
    """
    canonical = canonical_config(config, path)
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
        provenance={"original_format": "safetensors", **(provenance or {})},
    )


def canonical_config(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Nulls dropped, `rope_parameters` taken apart: theta lifted, a scaling that is not `default` under `rope_scaling`."""
    plain = {key: value for key, value in config.items() if value is not None and key not in ("architectures", "model_type")}
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


def hf_config(
    config: ModelConfig, info: FamilyInfo, *, header: Header | None = None, hf_class: str | None = None, dtype: str = "F32"
) -> dict[str, Any]:
    """The config.json of an export: loads in transformers 4 (`rope_theta`) and 5 (`rope_parameters`).

    `header` is where the model came from: its further keys (dropout, token ids, …) are kept.
    """
    own = {key: value for key, value in config.to_dict().items() if key not in _OWN_WORDS and value is not None}
    kept = {key: value for key, value in (header.config if header else {}).items() if key not in _DROPPED and "." not in key}
    kept.pop("rms_norm_eps" if "layer_norm_eps" in own else "layer_norm_eps", None)
    return {
        "architectures": [hf_class or info.hf_classes[0]],
        "model_type": info.model_type,
        **kept,
        **own,
        **_rope_spellings(own),
        "dtype": _DTYPE_NAMES.get(dtype, "float32"),
    }


def _rope_spellings(own: Mapping[str, Any]) -> dict[str, Any]:
    if "rope_theta" not in own:
        return {}
    scaling = own.get("rope_scaling") or {"rope_type": NEUTRAL_ROPE}
    return {"rope_parameters": {"rope_theta": own["rope_theta"], **scaling}}

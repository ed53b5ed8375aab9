"""Hugging Face's config.json in both directions: transformers 4 and 5 spellings → the canonical header, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.tie import tie_from_index
from apr_train.checkpoint.tokenizer_spec import TokenizerSpec
from apr_train.errors import FormatError

NEUTRAL_ROPE = "default"
_LIFTED = ("rope_theta", "partial_rotary_factor")


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

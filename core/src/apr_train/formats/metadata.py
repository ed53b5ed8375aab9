"""`.apr` metadata in both directions: raw JSON keys ↔ the canonical header with Hugging Face's key names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_train.config import ModelConfig
from apr_train.errors import FormatError
from apr_train.family import FamilyInfo
from apr_train.formats.numbers import shortest_f32
from apr_train.formats.rope_rows import SPLIT_HALF_TYPE, apr_rope_rows
from apr_train.formats.tie import tie_from_index
from apr_train.formats.tokenizer_metadata import spec_beside, spec_from_apr, spec_to_apr
from apr_train.header import Header, TensorInfo
from apr_train.structure import kind_of_tensors
from apr_train.tokenizer_spec import TokenizerSpec

TYPED_TO_HF = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "head_dim": "head_dim",
    "num_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "moe_intermediate_size": "moe_intermediate_size",
}
"""`.apr`'s typed key → Hugging Face's name."""
ALIASES = {
    "hidden_size": ("hidden_dim", "d_model", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_heads", "n_head"),
    "num_kv_heads": ("num_key_value_heads", "n_kv_heads"),
    "vocab_size": ("n_vocab",),
    "intermediate_size": ("ffn_dim", "intermediate_dim", "n_inner"),
    "max_position_embeddings": ("max_seq_len", "context_length", "n_ctx"),
    "rms_norm_eps": ("layer_norm_eps", "norm_eps"),
}
"""Typed key → other spellings that are read when it is unset, and never written."""
ENCODER_EPS = "layer_norm_eps"
PROVENANCE = (
    "name", "description", "author", "license", "data_source", "data_license", "version", "source", "original_format",
    "created_at",
)  # fmt: skip
_NOT_CONFIG = frozenset({
    *PROVENANCE, *TYPED_TO_HF, "model_type", "total_size", "param_count", "quantization", "sharding", "chat_template",
    "chat_format", "special_tokens", "architecture", "hf_architecture", "hf_model_type", "rope_type",
    *(alias for aliases in ALIASES.values() for alias in aliases),
})  # fmt: skip
_HOUSEKEEPING = frozenset({
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "_name_or_path",
    "rope_parameters",
})  # fmt: skip
"""Hugging Face keys that say nothing about the mathematics, or that the canonical config has under another name."""


def header_from_apr(path: str, raw_metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], flags: int) -> Header:
    """The canonical header of an `.apr` file.

    `raw_metadata` is the parsed JSON (last one of duplicate keys won); `flags` is the header's word: which file is
    readable at all was decided before, none of the rest changes the header. The normalisation epsilon has one typed
    key, `rms_norm_eps`: `config` has it under that name for a decoder, as `layer_norm_eps` for an encoder (the tensor
    names tell them apart), and under both when the names show neither.

    Raises:
        FormatError: when the metadata is malformed (a tokenizer that is no list of strings, say).
    """
    del flags
    metadata = {key: value for key, value in raw_metadata.items() if value is not None}
    config = _canonical_config(metadata, tensors)
    architecture = _architecture(metadata)
    return Header(
        path=path,
        format="apr",
        hf_class=_text(metadata.get("hf_architecture")),
        architecture=architecture,
        config=config,
        tensors=tensors,
        names="hf",
        rope_rows=apr_rope_rows(metadata, architecture),
        tie=tie_from_index(config, tensors),
        tokenizer=spec_from_apr(path, metadata) or spec_beside(Path(path)),
        provenance={key: metadata[key] for key in PROVENANCE if key in metadata},
    )


def _canonical_config(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    config = {key: value for key, value in metadata.items() if key not in _NOT_CONFIG and "." not in key}
    for typed, name in TYPED_TO_HF.items():
        spelled = next((key for key in (typed, *ALIASES.get(typed, ())) if key in metadata), None)
        if spelled is not None:
            config[name] = metadata[spelled]
    for name in ("rope_theta", "rms_norm_eps"):
        if isinstance(config.get(name), float):
            config[name] = shortest_f32(config[name])
    if "rms_norm_eps" in config and kind_of_tensors(tensors) != "decoder":
        config[ENCODER_EPS] = config["rms_norm_eps"]
        if kind_of_tensors(tensors) == "encoder":
            del config["rms_norm_eps"]
    return config


def _architecture(metadata: Mapping[str, Any]) -> str | None:
    value = _text(metadata.get("architecture")) or _text(metadata.get("hf_model_type"))
    return value.lower() if value else None


def _text(value: Any) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value else None


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
    under Hugging Face's names. Nothing is taken from a clock. `total_size` and `param_count` are the writer's.

    Raises:
        FormatError: when a value of `provenance` is no JSON scalar.
    """
    values = _config_values(config, header)
    typed = {key: values.pop(name) for key, name in TYPED_TO_HF.items() if name in values}
    eps = values.pop(ENCODER_EPS, None)
    if "rms_norm_eps" not in typed and eps is not None:
        typed["rms_norm_eps"] = eps
    forbidden = {alias for aliases in ALIASES.values() for alias in aliases}
    custom = {key: value for key, value in values.items() if key not in forbidden and key not in _NOT_CONFIG}
    return {
        "model_type": info.model_type,
        **_checked_provenance(provenance if provenance is not None else header.provenance if header else {}),
        "architecture": info.model_type,
        "hf_architecture": hf_class or info.hf_classes[0],
        "hf_model_type": info.model_type,
        **typed,
        **({"rope_type": SPLIT_HALF_TYPE} if info.kind == "decoder" else {}),
        **custom,
        **(spec_to_apr(tokenizer) if tokenizer is not None else {}),
    }


def _config_values(config: ModelConfig, header: Header | None) -> dict[str, Any]:
    own = config.to_dict()
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

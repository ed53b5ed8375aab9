"""`.apr` metadata in both directions: raw JSON keys ↔ the canonical header with Hugging Face's key names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_train.checkpoint.header import Header, TensorInfo, kind_of_tensors
from apr_train.checkpoint.numbers import shortest_f32
from apr_train.checkpoint.rope_rows import apr_rope_rows
from apr_train.checkpoint.tie import tie_from_index
from apr_train.checkpoint.tokenizer_metadata import spec_beside, spec_from_apr

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
NOT_CONFIG = frozenset({
    *PROVENANCE, *TYPED_TO_HF, "model_type", "total_size", "param_count", "quantization", "sharding", "chat_template",
    "chat_format", "special_tokens", "architecture", "hf_architecture", "hf_model_type", "rope_type",
    *(alias for aliases in ALIASES.values() for alias in aliases),
})  # fmt: skip


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
    config = {key: value for key, value in metadata.items() if key not in NOT_CONFIG and "." not in key}
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

"""GGUF's keys below the architecture's prefix, under Hugging Face's names: what a config is made of, in whichever container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.checkpoint.dtypes import shortest_f32

KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_multiplier",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logit_scale",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
"""Key below the architecture's prefix → Hugging Face's name."""
PATTERN = "attention.sliding_window_pattern"
WINDOW_KEYS = frozenset({"attention.sliding_window", PATTERN})
"""Keys of windows."""
LOGIT_DIVISORS = frozenset({"granite", "granitemoe", "granitehybrid", "granite-swa", "granite-switch"})
"""GGUF architectures whose `logit_scale` llama.cpp divides the logits by (src/models/granite*.cpp); it multiplies in others."""
_ZERO_IS_NONE = frozenset({
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "sliding_window",
    "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale",
    "attn_logit_softcapping", "final_logit_softcapping", "rope_local_base_freq",
})  # fmt: skip
"""Where llama.cpp reads 0 as: not used."""
NOT_USED_WHERE_ABSENT = _ZERO_IS_NONE | {"partial_rotary_factor"}
"""What llama.cpp does without where a file has no key for it; some of its architectures take a number instead."""
YARN_KEYS = {
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
"""Keys of YaRN → Hugging Face's names in rope_scaling."""
ROPE_KEYS = frozenset({"rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"})
"""Keys that the config's rope_scaling and partial_rotary_factor are made of."""


def keys_of_config(architecture: str | None) -> frozenset[str]:
    """The keys that `config_of_keys` and `rope_of_keys` read."""
    return frozenset(f"{architecture}.{key}" for key in (*KEYS, *ROPE_KEYS, PATTERN))


def config_of_keys(metadata: Mapping[str, Any], architecture: str | None) -> dict[str, Any]:
    """What the keys say, as a config; a value that llama.cpp reads as "not used" is left out."""
    config: dict[str, Any] = {}
    for key, name in KEYS.items():
        value = plain(metadata.get(f"{architecture}.{key}"))
        if value is not None and not (value == 0 and name in _ZERO_IS_NONE):
            config[name] = value
    if architecture in LOGIT_DIVISORS and "logit_scale" in config:
        config["logits_scaling"] = config.pop("logit_scale")
    return config | _pattern(metadata.get(f"{architecture}.{PATTERN}"))


def _pattern(value: Any) -> dict[str, Any]:
    """The layers that slide: a flag for each, or the period at whose end a full one stands.

    Source: `llama_hparams::set_swa_pattern` in llama.cpp.
    """
    if isinstance(value, list):
        return {"layer_types": ["sliding_attention" if slides else "full_attention" for slides in value]}
    return {} if value in (None, 0) else {"sliding_window_pattern": value}


def rope_of_keys(metadata: Mapping[str, Any], architecture: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE on part of a head, and scalings: both change the mathematics and must be seen by the preflight."""
    found: dict[str, Any] = {}
    width = metadata.get(f"{architecture}.rope.dimension_count")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(width, int) and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        head_dim = config.get("head_dim", hidden // heads)
        if isinstance(head_dim, int) and head_dim > 0 and width != head_dim:
            found["partial_rotary_factor"] = width / head_dim
    scaling = _rope_scaling(metadata, architecture)
    if scaling is not None:
        found["rope_scaling"] = scaling
    return found


def _rope_scaling(metadata: Mapping[str, Any], architecture: str | None) -> dict[str, Any] | None:
    """The scaling as Hugging Face spells it.

    llama.cpp takes a factor without a type as linear, reads the older `scale_linear` where there is no factor, and a
    factor of 0 as none.
    """
    kind: Any = metadata.get(f"{architecture}.rope.scaling.type", "linear")
    factor = plain(metadata.get(f"{architecture}.rope.scaling.factor", metadata.get(f"{architecture}.rope.scale_linear")))
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return None
    scaling = {"rope_type": kind, **({} if factor is None else {"factor": factor})}
    return scaling if kind != "yarn" else scaling | _yarn(metadata, architecture)


def _yarn(metadata: Mapping[str, Any], architecture: str | None) -> dict[str, Any]:
    """YaRN's further numbers; the original length is the context's where it is not given."""
    found = {name: plain(metadata.get(f"{architecture}.{key}")) for key, name in YARN_KEYS.items()}
    length = metadata.get(f"{architecture}.context_length")
    said = {name: value for name, value in found.items() if value not in (None, 0)}
    return {**({} if length is None else {"original_max_position_embeddings": length}), **said}


def plain(value: Any) -> Any:
    """One number per model: a per-layer array counts when all layers agree, else it stays a list for the family to judge."""
    if isinstance(value, list):
        value = value[0] if value and all(item == value[0] for item in value) else value
    return shortest_f32(value) if isinstance(value, float) else value

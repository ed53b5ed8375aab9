"""Config keys that change a model's mathematics: the value at which each of them does nothing.

A key that a family's config has as a field is implemented there and must arrive unchanged. Every other key that is known
to change the mathematics must be at its neutral value, else the file asks for something that the trainer would leave out.
Keys that are known to change nothing are listed too; what is in neither list is told to the user. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from apr_train import rules
from apr_train.checkpoint.header import Header
from apr_train.errors import Finding
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig

OFF = (False, 0, None)
ONE = (1,)

NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "use_mrope": (OFF, "multimodal rotary sections"),
    "rope_interleaved": (OFF, "rotary embedding of adjacent pairs"),
    "partial_rotary_factor": (ONE, "rotary embedding of a part of each head"),
    "rotary_emb_fraction": (ONE, "rotary embedding of a part of each head"),
    "rope_percent": (ONE, "rotary embedding of a part of each head"),
    "rope_interleave": (OFF, "rotary embedding of adjacent pairs"),
    "rope_ratio": (ONE, "another rotary base"),
    "rope_local_theta": ((), "a second rotary base for local layers"),
    "local_rope_theta": ((), "a second rotary base for local layers"),
    "global_rope_theta": ((), "a second rotary base for local layers"),
    "rotary_pct": (ONE, "rotary embedding of a part of each head"),
    "rope_local_base_freq": ((), "a second rotary base for local layers"),
    "alibi": (OFF, "linear position biases"),
    "position_embedding_type": (("absolute",), "relative position embeddings"),
    "relative_attention": (OFF, "relative position embeddings"),
    "sinusoidal_embeddings": (OFF, "computed position embeddings"),
    "use_rope": ((True,), "no rotary positions"),
    "attention_bias": (OFF, "biases on the attention projections"),
    "attention_output_bias": (OFF, "a bias on the attention output"),
    "attention_out_bias": (OFF, "a bias on the attention output"),
    "qkv_bias": (OFF, "biases on q, k and v"),
    "use_qkv_bias": (OFF, "biases on q, k and v"),
    "add_qkv_bias": (OFF, "biases on q, k and v"),
    "add_bias_linear": (OFF, "biases on the projections"),
    "lm_head_bias": (OFF, "a bias on the head"),
    "mlp_bias": (OFF, "biases in the MLP"),
    "use_bias": (OFF, "biases on the projections"),
    "attn_logit_softcapping": (OFF, "a soft cap on attention scores"),
    "final_logit_softcapping": (OFF, "a soft cap on the logits"),
    "attn_logit_softcap": (OFF, "a soft cap on attention scores"),
    "final_logit_softcap": (OFF, "a soft cap on the logits"),
    "logits_soft_cap": (OFF, "a soft cap on the logits"),
    "attn_temperature_tuning": (OFF, "attention scores scaled by position"),
    "scale_attn_weights": ((True,), "unscaled attention scores"),
    "scale_attn_by_inverse_layer_idx": (OFF, "attention scores scaled by layer"),
    "key_multiplier": (ONE, "scaled keys"),
    "lm_head_multiplier": (ONE, "scaled logits"),
    "dim_model_base": ((), "scaled logits"),
    "scale_embedding": (OFF, "scaled embeddings"),
    "normalize_embedding": (OFF, "normalised embeddings"),
    "emb_layer_norm_before": (OFF, "another norm of the embeddings"),
    "token_dropout": (OFF, "embeddings scaled by the number of masked tokens"),
    "logit_scale": (ONE, "scaled logits"),
    "logits_scaling": (ONE, "scaled logits"),
    "embedding_multiplier": (ONE, "scaled embeddings"),
    "scale_emb": (ONE, "scaled embeddings"),
    "residual_multiplier": (ONE, "scaled residual branches"),
    "scale_depth": ((), "scaled residual branches"),
    "use_qk_norm": (OFF, "norms on queries and keys"),
    "qk_norm": (OFF, "norms on queries and keys"),
    "qk_layernorm": (OFF, "norms on queries and keys"),
    "use_query_key_norm": (OFF, "norms on queries and keys"),
    "clip_qkv": (OFF, "clipped queries, keys and values"),
    "use_parallel_residual": (OFF, "attention and MLP in parallel"),
    "parallel_attn": (OFF, "attention and MLP in parallel"),
    "new_decoder_architecture": (OFF, "attention and MLP in parallel"),
    "post_norm": (OFF, "norms after the blocks"),
    "use_post_norm": (OFF, "norms after the blocks"),
    "apply_residual_connection_post_layernorm": (OFF, "residual branches that start after the norm"),
    "layer_norm_elementwise_affine": ((True,), "norms without weights"),
    "hidden_act": ((), "another activation"),
    "swiglu_limit": ((), "a clipped activation"),
    "swiglu_alpha": ((), "another activation"),
    "kv_lora_rank": (OFF, "latent attention"),
    "q_lora_rank": (OFF, "latent attention"),
    "num_kv_shared_layers": (OFF, "keys and values shared between layers"),
    "hidden_size_per_layer_input": (OFF, "embeddings for each layer"),
    "interleaved_sliding_window": (OFF, "attention that differs between layers"),
    "global_attn_every_n_layers": ((0, 1), "attention that differs between layers"),
    "local_attention": (OFF, "a sliding attention window"),
    "attention_window_size": (OFF, "a sliding attention window"),
    "attention_chunk_size": (OFF, "attention in chunks"),
    "use_bidirectional_attention": (OFF, "attention to later tokens"),
    "is_decoder": (OFF, "causal attention in an encoder"),
    "add_cross_attention": (OFF, "cross attention"),
    "is_encoder_decoder": (OFF, "an encoder-decoder"),
    "num_experts": (OFF, "a mixture of experts"),
    "num_local_experts": (OFF, "a mixture of experts"),
    "n_routed_experts": (OFF, "a mixture of experts"),
    "num_experts_per_tok": (OFF, "a mixture of experts"),
    "n_shared_experts": (OFF, "a mixture of experts"),
    "shared_expert_intermediate_size": (OFF, "a mixture of experts"),
    "moe_intermediate_size": (OFF, "a mixture of experts"),
    "quantization_config": (OFF, "weights packed by a quantiser"),
}
"""Key → neutral values and what any other value asks for; no neutral value means that the key must be absent."""

DROPOUTS = frozenset({
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout", "emb_pdrop", "embd_pdrop",
    "embedding_dropout", "hidden_dropout", "hidden_dropout_prob", "layerdrop", "mlp_dropout", "resid_pdrop", "residual_dropout",
})  # fmt: skip
"""Regularisation during training: ignoring it does not make the weights wrong, so it is a warning."""

ACTIVATIONS = frozenset({"activation", "activation_function", "hidden_activation"})
"""Other spellings of hidden_act: the value must be the one that the block has."""

WINDOW_KEYS = frozenset({
    "use_sliding_window", "sliding_window", "max_window_layers", "sliding_window_pattern", "layer_types",
})  # fmt: skip
SPECIAL_KEYS = (
    WINDOW_KEYS
    | ACTIVATIONS
    | {
        "rope_scaling",
        "attention_multiplier",
        "query_pre_attn_scalar",
        "no_rope_layers",
        "no_rope_layer_interval",
        "rotary_dim",
        "embedding_size",
    }
)

HARMLESS = frozenset({
    "architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
    "cache_implementation", "chunk_size_feed_forward", "classifier_dropout", "cls_token_id", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
    "eos_token_id", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "gradient_checkpointing", "id2label", "init_std", "is_llama_config", "label2id", "layer_norm_eps", "length_penalty",
    "mask_token_id", "max_length", "max_window_layers", "min_length", "model_type", "no_repeat_ngram_size",
    "norm_topk_prob", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences",
    "original_max_position_embeddings", "output_attentions", "output_hidden_states", "output_past", "output_router_logits",
    "output_scores", "pad_token_id", "prefix", "pretraining_tp", "problem_type", "pruned_heads", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "rms_norm_eps", "rope_type", "router_aux_loss_coef",
    "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers.js_config", "transformers_version",
    "transformers_weights", "typical_p", "unk_token_id", "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache",
})  # fmt: skip
"""Keys of training, generation and bookkeeping that leave the forward pass as it is."""


def config_key_findings(header: Header, config: ModelConfig | None) -> list[Finding]:
    """Judge every key of the file's metadata against what the config implements.

    Without a config (it could not be built) the core's own configs stand for what is implemented.
    """
    findings = [*_windows(header), *_rope_scaling(header, config), *_scales(header), *_activations(header, config)]
    unknown: list[str] = []
    for key, value in header.config.items():
        if value is None or key in SPECIAL_KEYS or key == "tie_word_embeddings" or _private(key):
            continue
        findings += _judge(header, config, key, value, unknown)
    return findings + ([_unknown(header, unknown)] if unknown else [])


def _private(key: str) -> bool:
    """Bookkeeping of the library that wrote the file; a key of the tables is judged with its underscore, too."""
    return key.startswith("_") and key[1:] not in NEUTRAL


def _judge(header: Header, config: ModelConfig | None, key: str, value: Any, unknown: list[str]) -> list[Finding]:
    if key in _fields(config) or (config is not None and hasattr(config, key)):
        return _field(header, config, key, value)
    if key.removeprefix("_") in NEUTRAL:
        values, meaning = NEUTRAL[key.removeprefix("_")]
        return [] if value in values else [_harmful(header, key, value, values, meaning)]
    if key in DROPOUTS:
        return [] if value == 0 else [_dropout(header, key, value)]
    if key not in HARMLESS:
        unknown.append(key)
    return []


def _fields(config: ModelConfig | None) -> set[str]:
    classes: tuple[type[ModelConfig], ...] = (DecoderConfig, EncoderConfig) if config is None else (type(config),)
    return {item.name for cls in classes for item in attrs.fields(cls)}


def _field(header: Header, config: ModelConfig | None, key: str, value: Any) -> list[Finding]:
    """A field that the family fixes itself must not contradict the file."""
    if config is None or getattr(config, key) == value:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_003,
            subject=header.path,
            field=key,
            problem="the family does not implement this value",
            expected=repr(getattr(config, key)),
            found=repr(value),
            hint="The file belongs to another architecture or variant.",
        )
    ]


def _harmful(header: Header, key: str, value: Any, values: tuple[Any, ...], meaning: str) -> Finding:
    neutral = " or ".join(repr(item) for item in values if item is False or (item is not None and item != 0))
    return Finding(
        rule=rules.PREFLIGHT_003,
        subject=header.path,
        field=key,
        problem=f"the file asks for {meaning}, which the family does not implement",
        expected=f"{neutral} or no such key" if neutral else "no such key",
        found=_short(value),
        hint="Trained without it, the model would be another one than the file's.",
    )


def _dropout(header: Header, key: str, value: Any) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_003,
        subject=header.path,
        field=key,
        problem="this dropout is not implemented and is not applied",
        expected="0.0",
        found=_short(value),
        severity="warning",
    )


def _unknown(header: Header, keys: list[str]) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_004,
        subject=header.path,
        field="config",
        problem="keys that nobody here knows: they are ignored",
        expected="only known keys",
        found=", ".join(sorted(keys)),
        hint="Make sure that none of them changes the mathematics.",
        severity="warning",
    )


def _windows(header: Header) -> list[Finding]:
    """Sliding windows: off by flag, absent, or starting above the last layer.

    Source: the `__post_init__` of transformers' configs with `max_window_layers` (layer i slides when i >= that).
    """
    config = header.config
    kinds = {str(item) for item in _items(config.get("layer_types"))}
    findings = []
    if kinds - {"full_attention"}:
        meaning = "attention that differs between layers"
        findings.append(_harmful(header, "layer_types", sorted(kinds), ("full_attention",), meaning))
    elif _window_slides(config):
        meaning = "a sliding attention window"
        findings.append(_harmful(header, "sliding_window", config["sliding_window"], (), meaning))
    elif pattern := config.get("sliding_window_pattern", config.get("_sliding_window_pattern")):
        findings.append(_harmful(header, "sliding_window_pattern", pattern, (), "attention that differs between layers"))
    return findings


def _items(value: Any) -> tuple[Any, ...]:
    """A list's items; anything else is one item, so that a malformed value is judged and not iterated."""
    return tuple(value) if isinstance(value, list | tuple) else (() if value is None else (value,))


def _window_slides(config: Mapping[str, Any]) -> bool:
    if not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return False
    layers, first = config.get("num_hidden_layers"), config.get("max_window_layers")
    return not (isinstance(layers, int) and isinstance(first, int) and first >= layers)


def _rope_scaling(header: Header, config: ModelConfig | None) -> list[Finding]:
    """Only a scaling that the config took over is implemented."""
    value = header.config.get("rope_scaling")
    if not value:
        return []
    kind = value.get("rope_type", value.get("type", "default")) if isinstance(value, Mapping) else value
    partial = value.get("partial_rotary_factor", 1) if isinstance(value, Mapping) else 1
    findings = []
    if partial != 1:
        meaning = "rotary embedding of a part of each head"
        findings.append(_harmful(header, "rope_scaling.partial_rotary_factor", partial, ONE, meaning))
    taken = kind == "llama3" if config is None else getattr(config, "rope_scaling", None) is not None
    if kind != "default" and not taken:
        findings.append(_harmful(header, "rope_scaling", kind, ("llama3", "default"), "a RoPE scaling"))
    return findings


def _scales(header: Header) -> list[Finding]:
    """Attention scales that are neutral only at 1/sqrt(head_dim), and layers without rotary positions."""
    config = header.config
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "attention_multiplier": (lambda value: _close(value, _head_dim(config) ** -0.5), "another attention scale"),
        "query_pre_attn_scalar": (lambda value: _close(value, _head_dim(config)), "another attention scale"),
        "rotary_dim": (lambda value: _close(value, _head_dim(config)), "rotary embedding of a part of each head"),
        "embedding_size": (lambda value: value == config.get("hidden_size"), "embeddings of another width than the blocks"),
        "no_rope_layer_interval": (lambda value: "no_rope_layers" in config, "layers without rotary positions"),
        "no_rope_layers": (lambda value: all(item == 1 for item in _items(value)), "layers without rotary positions"),
    }
    return [
        _harmful(header, key, config[key], (), meaning)
        for key, (neutral, meaning) in checks.items()
        if config.get(key) and not neutral(config[key])
    ]


def _activations(header: Header, config: ModelConfig | None) -> list[Finding]:
    """Other spellings of hidden_act; without a config, as the file itself says it."""
    act = header.config.get("hidden_act", "silu") if config is None else config.hidden_act
    neutral = ("silu", "swish") if act == "silu" else (act,)
    keys = [key for key in sorted(ACTIVATIONS) if header.config.get(key) is not None]
    return [
        _harmful(header, key, header.config[key], neutral, "another activation")
        for key in keys
        if header.config[key] not in neutral
    ]


def _head_dim(config: Mapping[str, Any]) -> float:
    value = config.get("head_dim")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(value, int) and value > 0:
        return float(value)
    return hidden / heads if isinstance(hidden, int) and isinstance(heads, int) and hidden > 0 and heads > 0 else 1.0


def _close(value: Any, target: float) -> bool:
    return isinstance(value, int | float) and abs(value - target) <= 1e-6 * target


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

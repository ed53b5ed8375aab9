"""The tables behind `apr_train.neutral`: which config keys change the mathematics, and which do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OFF = (False, 0, None)
ONE = (1,)

NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "use_mrope": (OFF, "multimodal rotary sections"),
    "rope_interleaved": (OFF, "rotary embedding of adjacent pairs"),
    "partial_rotary_factor": (ONE, "rotary embedding of a part of each head"),
    "rotary_pct": (ONE, "rotary embedding of a part of each head"),
    "rope_local_base_freq": ((), "a second rotary base for local layers"),
    "alibi": (OFF, "linear position biases"),
    "position_embedding_type": (("absolute",), "relative position embeddings"),
    "attention_bias": (OFF, "biases on the attention projections"),
    "attention_output_bias": (OFF, "a bias on the attention output"),
    "attention_out_bias": (OFF, "a bias on the attention output"),
    "qkv_bias": (OFF, "biases on q, k and v"),
    "mlp_bias": (OFF, "biases in the MLP"),
    "use_bias": (OFF, "biases on the projections"),
    "attn_logit_softcapping": (OFF, "a soft cap on attention scores"),
    "final_logit_softcapping": (OFF, "a soft cap on the logits"),
    "logit_scale": (ONE, "scaled logits"),
    "logits_scaling": (ONE, "scaled logits"),
    "embedding_multiplier": (ONE, "scaled embeddings"),
    "scale_emb": (ONE, "scaled embeddings"),
    "residual_multiplier": (ONE, "scaled residual branches"),
    "scale_depth": ((), "scaled residual branches"),
    "use_qk_norm": (OFF, "norms on queries and keys"),
    "qk_norm": (OFF, "norms on queries and keys"),
    "qk_layernorm": (OFF, "norms on queries and keys"),
    "clip_qkv": (OFF, "clipped queries, keys and values"),
    "use_parallel_residual": (OFF, "attention and MLP in parallel"),
    "parallel_attn": (OFF, "attention and MLP in parallel"),
    "hidden_activation": (("silu", "swish"), "another activation"),
    "hidden_act": ((), "another activation"),
    "attention_chunk_size": (OFF, "attention in chunks"),
    "use_bidirectional_attention": (OFF, "attention to later tokens"),
    "is_decoder": (OFF, "causal attention in an encoder"),
    "add_cross_attention": (OFF, "cross attention"),
    "is_encoder_decoder": (OFF, "an encoder-decoder"),
    "num_experts": (OFF, "a mixture of experts"),
    "num_local_experts": (OFF, "a mixture of experts"),
    "n_routed_experts": (OFF, "a mixture of experts"),
    "num_experts_per_tok": (OFF, "a mixture of experts"),
    "moe_intermediate_size": (OFF, "a mixture of experts"),
    "quantization_config": (OFF, "weights packed by a quantiser"),
}
"""Key → neutral values and what any other value asks for; no neutral value means that the key must be absent."""

DROPOUTS = frozenset({
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "embd_pdrop", "embedding_dropout", "hidden_dropout",
    "hidden_dropout_prob", "mlp_dropout", "resid_pdrop", "residual_dropout",
})  # fmt: skip
"""Regularisation during training: ignoring it does not make the weights wrong, so it is a warning."""

WINDOW_KEYS = frozenset({
    "use_sliding_window", "sliding_window", "max_window_layers", "sliding_window_pattern", "layer_types",
})  # fmt: skip
SPECIAL_KEYS = WINDOW_KEYS | {"rope_scaling", "attention_multiplier", "query_pre_attn_scalar", "no_rope_layers"}

HARMLESS = frozenset({
    "architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
    "cache_implementation", "chunk_size_feed_forward", "classifier_dropout", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
    "eos_token_id", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "gradient_checkpointing", "id2label", "is_llama_config", "label2id", "layer_norm_eps", "length_penalty", "max_length",
    "max_window_layers", "min_length", "model_type", "no_repeat_ngram_size", "no_rope_layer_interval", "num_beam_groups",
    "num_beams", "num_labels", "num_return_sequences", "output_attentions", "output_hidden_states", "output_past",
    "output_scores", "pad_token_id", "prefix", "pretraining_tp", "problem_type", "pruned_heads", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "rms_norm_eps", "rope_type", "sep_token_id",
    "cls_token_id", "mask_token_id", "unk_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers.js_config", "transformers_version", "transformers_weights", "typical_p", "unsloth_fixed",
    "unsloth_version", "use_bfloat16", "use_cache",
})  # fmt: skip
"""Keys of training, generation and bookkeeping that leave the forward pass as it is."""

"""Config keys by what they do to a model's mathematics: the value at which each does nothing, or that it never does anything.

Names are Hugging Face's; where it has none, GGUF's below the architecture's prefix (`rope.scaling.attn_factor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.checkpoint.header import Kind

OFF = (False, 0, None)
ONE = (1,)

RENAMED: Mapping[str, str] = {
    **dict.fromkeys(("qkv_bias", "use_qkv_bias", "add_qkv_bias", "use_bias"), "attention_bias"),
    **dict.fromkeys(("rotary_pct", "rope_percent", "rotary_emb_fraction"), "partial_rotary_factor"),
    **dict.fromkeys(("rope_local_theta", "local_rope_theta"), "rope_local_base_freq"),
    "attn_logit_softcap": "attn_logit_softcapping",
    **dict.fromkeys(("final_logit_softcap", "logits_soft_cap"), "final_logit_softcapping"),
}
"""Keys of classes → the core's field of that meaning: what a card's `config_names` is for."""

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
    "qk_norm": ((*OFF, "none"), "norms on queries and keys"),
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
    "add_cross_attention": (OFF, "cross attention"),
    "is_encoder_decoder": (OFF, "an encoder-decoder"),
    "num_experts": (OFF, "a mixture of experts"),
    "num_local_experts": (OFF, "a mixture of experts"),
    "n_routed_experts": (OFF, "a mixture of experts"),
    "n_shared_experts": (OFF, "a mixture of experts"),
    "quantization_config": (OFF, "weights packed by a quantiser"),
    "pruned_heads": (({}, [], None), "attention without some of its heads"),
}
"""Key → neutral values and what any other value asks for; no neutral value means that the key must be absent."""

BY_KIND: Mapping[Kind, Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "decoder": {
        "is_causal": ((True,), "attention to later tokens"),
        "is_decoder": ((True, False), "another kind of attention"),
        "position_embedding_type": (("absolute", "rope", "rotary"), "relative position embeddings"),
        "attention.causal": ((True,), "attention to later tokens"),
    },
    "encoder": {
        "is_causal": ((False,), "causal attention in an encoder"),
        "is_decoder": (OFF, "causal attention in an encoder"),
        "position_embedding_type": (("absolute",), "relative position embeddings"),
        "attention.causal": ((False,), "causal attention in an encoder"),
        "decoder_bias": ((True,), "a head without a bias"),
    },
}
"""Keys whose neutral value depends on the kind of the model: `is_decoder` says nothing new about a decoder."""

EXPERTS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "num_experts_per_tok": (OFF, "a mixture of experts"),
    "shared_expert_intermediate_size": (OFF, "a mixture of experts"),
    "moe_intermediate_size": (OFF, "a mixture of experts"),
    "decoder_sparse_step": (ONE, "dense and sparse layers in turn"),
    "mlp_only_layers": (((), [], None), "dense layers among the sparse ones"),
    "norm_topk_prob": ((), "another weight of the chosen experts"),
    "expert_gating_func": ((0, 1), "a router other than a softmax"),
    "expert_group_scale": (OFF, "experts in groups"),
    "expert_group_used_count": (OFF, "experts in groups"),
    "experts_per_group": (OFF, "experts in groups"),
    "expert_weights_scale": ((0, 1), "scaled weights of the experts"),
    "routed_scaling_factor": (ONE, "scaled weights of the experts"),
    "scoring_func": (("softmax",), "a router other than a softmax"),
    "topk_method": (("greedy",), "another choice of experts"),
    "n_group": ((0, 1), "experts in groups"),
    "topk_group": ((0, 1), "experts in groups"),
    "first_k_dense_replace": (OFF, "dense layers among the sparse ones"),
    "moe_layer_freq": (ONE, "dense and sparse layers in turn"),
}
"""Keys that mean something only where there are experts, judged like the others there."""
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts")

GGUF_NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "attention.clamp_kqv": (OFF, "clipped queries, keys and values"),
    "attention.max_alibi_bias": (OFF, "linear position biases"),
    "attention.q_lora_rank": (OFF, "latent attention"),
    "attention.kv_lora_rank": (OFF, "latent attention"),
    "attention.key_length_mla": (OFF, "latent attention"),
    "attention.value_length_mla": (OFF, "latent attention"),
    "attention.key_length_swa": (OFF, "attention that differs between layers"),
    "attention.value_length_swa": (OFF, "attention that differs between layers"),
    "attention.relative_buckets_count": (OFF, "relative position embeddings"),
    "attention.output_scale": ((0, 1), "a scaled attention output"),
    "attention.temperature_length": (OFF, "attention scores scaled by position"),
    "attention.temperature_scale": (OFF, "attention scores scaled by position"),
    "attention.shared_kv_layers": (OFF, "keys and values shared between layers"),
    "attention.sliding_window": (OFF, "a sliding attention window"),
    "attention.sliding_window_pattern": (OFF, "attention that differs between layers"),
    "attention.group_norm_groups": (OFF, "another norm"),
    "attention.group_norm_epsilon": (OFF, "another norm"),
    "attention.indexer.head_count": (OFF, "sparse attention"),
    "attention.indexer.key_length": (OFF, "sparse attention"),
    "attention.indexer.top_k": (OFF, "sparse attention"),
    "rope.dimension_sections": ((), "multimodal rotary sections"),
    "rope.dimension_count_swa": (OFF, "rotary embedding that differs between layers"),
    "rope.scaling.attn_factor": (ONE, "attention scores scaled with the RoPE"),
    "rope.scaling.yarn_attn_factor": (ONE, "attention scores scaled with the RoPE"),
    "rope.scaling.yarn_ext_factor": ((0, 1, -1), "another ramp of the RoPE scaling"),
    "rope.scaling.yarn_log_multiplier": (OFF, "attention scores scaled with the RoPE"),
    "rope.scaling.alpha": ((0, 1), "a RoPE scaling"),
    "rope_type": ((0, 2), "another kind of rotary embedding"),
    "use_parallel_residual": (OFF, "attention and MLP in parallel"),
    "router_logit_softcapping": (OFF, "a mixture of experts"),
    "expert_shared_count": (OFF, "a mixture of experts"),
    "expert_group_count": ((0, 1), "a mixture of experts"),
    "leading_dense_block_count": (OFF, "a mixture of experts"),
    "moe_every_n_layers": (OFF, "a mixture of experts"),
    "interleave_moe_layer_step": (OFF, "a mixture of experts"),
    "embedding_length_per_layer_input": (OFF, "embeddings for each layer"),
    "activation_sparsity_scale": ((), "sparse activations"),
    "swiglu_clamp_exp": ((), "a clipped activation"),
    "swiglu_clamp_shexp": ((), "a clipped activation"),
    "altup.num_inputs": ((0, 1), "several residual streams"),
    "full_attention_interval": ((0, 1), "attention that differs between layers"),
    "swin_norm": (OFF, "norms after the blocks"),
    "rescale_every_n_layers": (OFF, "scaled residual branches"),
    "token_shift_count": (OFF, "shifted tokens"),
    "decoder_block_count": (OFF, "an encoder-decoder"),
}
"""The same for keys that only GGUF has, below the architecture's prefix, and for `.apr`'s `rope_type`; llama.cpp reads 0 as
its default for most."""
GGUF_HARMLESS = frozenset({
    "altup.active_idx", "classifier.output_labels", "decoder_start_token_id", "nextn_predict_layers", "pooling_type",
    "rope.scaling.finetuned", "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "tensor_data_layout",
})  # fmt: skip
"""Keys of GGUF that change nothing, that are read into YaRN's scaling where there is one, or whose tensors tell (the layers
that predict further tokens)."""

DROPOUTS = frozenset({
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout", "emb_pdrop", "embd_pdrop",
    "embedding_dropout", "hidden_dropout", "hidden_dropout_prob", "layerdrop", "mlp_dropout", "resid_pdrop", "residual_dropout",
    "router_jitter_noise",
})  # fmt: skip
"""Regularisation during training, noise before the router included: ignoring it does not make the weights wrong, so it is a
warning."""

ACTIVATIONS = frozenset({"activation", "activation_function", "hidden_activation"})
"""Other spellings of hidden_act: the value must be the one that the block has."""
SAME_ACTIVATION = (frozenset({"silu", "swish"}), frozenset({"gelu_new", "gelu_pytorch_tanh"}))
"""Names of one function."""

WINDOW_KEYS = frozenset({
    "use_sliding_window", "sliding_window", "max_window_layers", "sliding_window_pattern", "layer_types",
})  # fmt: skip
ROUTER_LOSS = frozenset({"router_aux_loss_coef", "output_router_logits"})
SPECIAL_KEYS = (
    WINDOW_KEYS
    | ACTIVATIONS
    | ROUTER_LOSS
    | {
        "rope_scaling",
        "rope_local_base_freq",
        "attention_multiplier",
        "query_pre_attn_scalar",
        "no_rope_layers",
        "no_rope_layer_interval",
        "rotary_dim",
        "embedding_size",
        "v_head_dim",
    }
)
"""Keys that a rule of their own judges, most of them with others."""

_HARMLESS = {
    "says what the file is": """architectures model_type is_llama_config unsloth_fixed unsloth_version transformers_version
        transformers_weights transformers.js_config tokenizer_class task_specific_params finetuning_task torch_dtype dtype""",
    "how the code computes, not what": """attn_implementation use_cache cache_implementation gradient_checkpointing torchscript
        use_bfloat16 chunk_size_feed_forward pretraining_tp return_dict output_attentions output_hidden_states output_past
        deterministic_flash_attn reference_compile repad_logits_with_grad reorder_and_upcast_attn""",
    "ids of tokens, which the preflight judges": """bos_token_id eos_token_id pad_token_id mask_token_id sep_token_id
        cls_token_id unk_token_id decoder_start_token_id""",
    "settings of generation": """bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
        encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
        max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix
        remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p""",
    "heads of other tasks than this one": """classifier_activation classifier_bias classifier_dropout classifier_pooling
        id2label label2id num_labels problem_type summary_activation summary_first_dropout summary_proj_to_labels summary_type
        summary_use_proj""",
    "initialisation of fresh weights": "init_std initializer_cutoff_factor",
    "means something only with a cross attention or an encoder-decoder, which are judged": """cross_attention_hidden_size
        tie_encoder_decoder tf_legacy_loss""",
    "which rows of logits are computed, not their values": "sparse_prediction sparse_pred_ignore_index",
    "a length that only a scaling uses, which has it": "original_max_position_embeddings",
    "another name of the number of positions, which no code of transformers reads": "n_ctx",
    "a kind that only the table of a scaling decides": "rope_type",
    "the epsilon of a kind of norm that the model does not have; its own is a required field": "layer_norm_eps rms_norm_eps",
}
HARMLESS: Mapping[str, str] = {key: reason for reason, keys in _HARMLESS.items() for key in keys.split()}
"""Keys that leave the forward pass and the loss as they are → why."""

"""Mixtral: a Llama whose every MLP is a mixture of experts."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl, read_config

FAMILY = FamilyInfo(
    name="mixtral",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("MixtralForCausalLM", "MixtralModel"),
    model_type="mixtral",
    presets=("8x7b", "tiny"),
    default_preset="8x7b",
    parameter_counts={"8x7b": 46_702_792_704, "tiny": 303_936},
    config_keys=("num_experts", "num_experts_per_tok", "router_aux_loss_coef", "sliding_window"),
    config_names={"num_experts": "num_local_experts"},
    implied={"num_experts": 8, "num_experts_per_tok": 2},
    fixed={"norm_topk_prob": True},
    layer_pattern=("sliding_attention",),
)
SHARED = {
    **FAMILY.fixed,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.02,
}
PRESETS = {
    "8x7b": DecoderConfig(
        vocab_size=32_000,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14_336,
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
        num_experts=8,
        **SHARED,
    ),
    "tiny": DecoderConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        num_experts=4,
        **SHARED,
    ),
}
NAMES = {
    "mlp.gate": "block_sparse_moe.gate",
    "mlp.experts.gate_proj": "block_sparse_moe.experts.{expert}.w1",
    "mlp.experts.down_proj": "block_sparse_moe.experts.{expert}.w2",
    "mlp.experts.up_proj": "block_sparse_moe.experts.{expert}.w3",
}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, decoder_rules(config, layout, names=NAMES))

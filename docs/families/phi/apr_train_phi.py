"""Phi-1, Phi-1.5 and Phi-2: attention and MLP in parallel behind one LayerNorm, heads rotated in part, biases everywhere."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl, read_config

BIASES = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True, "lm_head_bias": True}
FAMILY = FamilyInfo(
    name="phi",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("PhiForCausalLM", "PhiModel"),
    model_type="phi",
    gguf_architectures=("phi2",),
    presets=("2", "tiny"),
    default_preset="2",
    parameter_counts={"2": 2_779_683_840, "tiny": 231_936},
    config_keys=("layer_norm_eps", "partial_rotary_factor"),
    implied={"hidden_act": "gelu_new", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    fixed={"norm": "layer", "parallel_residual": True, "gated_mlp": False, **BIASES},
    never_permuted=True,
)
SHARED = {
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    **FAMILY.fixed,
}
PRESETS = {
    "2": DecoderConfig(
        vocab_size=51_200,
        hidden_size=2560,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=10_240,
        max_position_embeddings=2048,
        partial_rotary_factor=0.4,
        **SHARED,
    ),
    "tiny": DecoderConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        max_position_embeddings=512,
        partial_rotary_factor=0.5,
        **SHARED,
    ),
}
NAMES = {
    "self_attn.o_proj": "self_attn.dense",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
    "norm": "final_layernorm",
}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, decoder_rules(config, layout, names=NAMES))

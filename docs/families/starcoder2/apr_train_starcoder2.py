"""StarCoder2: LayerNorm, biases everywhere, a plain GELU MLP, and a sliding window in every layer."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl, read_config

BIASES = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
FAMILY = FamilyInfo(
    name="starcoder2",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("Starcoder2ForCausalLM", "Starcoder2Model"),
    model_type="starcoder2",
    gguf_architectures=("starcoder2",),
    presets=("3b", "tiny"),
    default_preset="3b",
    parameter_counts={"3b": 3_030_371_328, "tiny": 157_312},
    config_keys=("sliding_window", "layer_norm_eps"),
    config_names={"layer_norm_eps": "norm_epsilon", **dict.fromkeys(BIASES, "use_bias")},
    fixed={"norm": "layer", "gated_mlp": False, **BIASES},
    implied={"hidden_act": "gelu_pytorch_tanh"},
    layer_pattern=("sliding_attention",),
    never_permuted=True,
    fim_tokens={"prefix": "<fim_prefix>", "middle": "<fim_middle>", "suffix": "<fim_suffix>", "pad": "<fim_pad>"},
)
SHARED = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-5, "tie_word_embeddings": True, **FAMILY.fixed}
PRESETS = {
    "3b": DecoderConfig(
        vocab_size=49_152,
        hidden_size=3072,
        num_hidden_layers=30,
        num_attention_heads=24,
        num_key_value_heads=2,
        intermediate_size=12_288,
        max_position_embeddings=16_384,
        rope_theta=999_999.4420358813,
        sliding_window=4096,
        layer_types=FAMILY.layer_pattern * 30,
        **SHARED,
    ),
    "tiny": DecoderConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        sliding_window=32,
        layer_types=FAMILY.layer_pattern * 2,
        **SHARED,
    ),
}
NAMES = {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, decoder_rules(config, layout, names=NAMES))

"""SmolLM3: a Llama in which every fourth layer has no rotary positions."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl, read_config

FAMILY = FamilyInfo(
    name="smollm3",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("SmolLM3ForCausalLM", "SmolLM3Model"),
    model_type="smollm3",
    gguf_architectures=("smollm3",),
    presets=("3b", "tiny"),
    default_preset="3b",
    parameter_counts={"3b": 3_075_098_624, "tiny": 311_872},
    config_keys=("no_rope_layers",),
    absent_keys={"use_sliding_window": False, "no_rope_layer_interval": 4},
)
PATTERN = (1, 1, 1, 0)
SHARED = {"rms_norm_eps": 1e-6, "tie_word_embeddings": True}
PRESETS = {
    "3b": DecoderConfig(
        vocab_size=128_256,
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        intermediate_size=11_008,
        max_position_embeddings=65_536,
        rope_theta=5_000_000.0,
        no_rope_layers=PATTERN * 9,
        **SHARED,
    ),
    "tiny": DecoderConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        no_rope_layers=PATTERN,
        **SHARED,
    ),
}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, decoder_rules(config, layout))

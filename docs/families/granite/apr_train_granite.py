"""Granite, dense: a Llama with factors on embeddings, residual branches, attention scores and logits."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl, read_config

FAMILY = FamilyInfo(
    name="granite",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("GraniteForCausalLM", "GraniteModel"),
    model_type="granite",
    gguf_architectures=("granite",),
    presets=("3.3-2b", "tiny"),
    default_preset="3.3-2b",
    parameter_counts={"3.3-2b": 2_533_539_840, "tiny": 188_736},
    config_keys=("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
    implied={"attention_multiplier": 1.0},
)
SHARED = {"rope_theta": 10_000_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "embedding_multiplier": 12.0}
PRESETS = {
    "3.3-2b": DecoderConfig(
        vocab_size=49_159,
        hidden_size=2048,
        num_hidden_layers=40,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
        max_position_embeddings=131_072,
        residual_multiplier=0.22,
        attention_multiplier=0.015625,
        logits_scaling=8.0,
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
        residual_multiplier=0.5,
        attention_multiplier=0.0625,
        logits_scaling=2.0,
        **SHARED,
    ),
}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, decoder_rules(config, layout))

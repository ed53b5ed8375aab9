"""Qwen3, dense: a Llama whose q and k are normed head by head."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl, read_config

FAMILY = FamilyInfo(
    name="qwen3",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("Qwen3ForCausalLM", "Qwen3Model"),
    model_type="qwen3",
    gguf_architectures=("qwen3",),
    presets=("0.6b", "tiny"),
    default_preset="0.6b",
    parameter_counts={"0.6b": 596_049_920, "tiny": 188_864},
    fixed={"qk_norm": "head"},
    absent_keys={"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    never_permuted=True,
)
SHARED = {"rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, **FAMILY.fixed}
PRESETS = {
    "0.6b": DecoderConfig(
        vocab_size=151_936,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        max_position_embeddings=40_960,
        **SHARED,
    ),
    "tiny": DecoderConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=192,
        max_position_embeddings=512,
        **SHARED,
    ),
}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, decoder_rules(config, layout))

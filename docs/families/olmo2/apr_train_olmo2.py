"""OLMo 2: norms stand behind attention and MLP, and q and k are normed over all their heads at once."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl, read_config

FAMILY = FamilyInfo(
    name="olmo2",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("Olmo2ForCausalLM", "Olmo2Model"),
    model_type="olmo2",
    gguf_architectures=("olmo2",),
    presets=("1b", "tiny"),
    default_preset="1b",
    parameter_counts={"1b": 1_484_916_736, "tiny": 262_720},
    fixed={"norm_position": "post", "qk_norm": "projection"},
    never_permuted=True,
)
SHARED = {"rope_theta": 500_000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, **FAMILY.fixed}
PRESETS = {
    "1b": DecoderConfig(
        vocab_size=100_352,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        intermediate_size=8192,
        max_position_embeddings=4096,
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
        **SHARED,
    ),
}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, decoder_rules(config, layout))

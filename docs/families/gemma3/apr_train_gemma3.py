"""Gemma 3, text only: five sliding layers to a full one, each kind with a rotary base of its own, and norms of q and k."""

from apr_train.family import DecoderConfig, FamilyInfo, Finding, NameMap, decoder_rules, hookimpl, read_config, rules

FAMILY = FamilyInfo(
    name="gemma3",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("Gemma3ForCausalLM", "Gemma3TextModel"),
    model_type="gemma3_text",
    gguf_architectures=("gemma3",),
    presets=("1b", "tiny"),
    default_preset="1b",
    parameter_counts={"1b": 999_885_952, "tiny": 411_584},
    config_keys=("sliding_window", "layer_types", "rope_local_base_freq", "query_pre_attn_scalar"),
    config_names={"hidden_act": "hidden_activation"},
    implied={"hidden_act": "gelu_pytorch_tanh", "rope_local_base_freq": 10_000.0},
    fixed={"norm_position": "both", "norm_offset": 1.0, "qk_norm": "head", "scale_embedding": True},
    layer_pattern=("sliding_attention",) * 5 + ("full_attention",),
    never_permuted=True,
)
SHARED = {
    "hidden_act": "gelu_pytorch_tanh",
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    **FAMILY.fixed,
}
PRESETS = {
    "1b": DecoderConfig(
        vocab_size=262_144,
        hidden_size=1152,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=6912,
        max_position_embeddings=32_768,
        sliding_window=512,
        layer_types=(FAMILY.layer_pattern * 5)[:26],
        query_pre_attn_scalar=256,
        **SHARED,
    ),
    "tiny": DecoderConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=192,
        max_position_embeddings=512,
        sliding_window=32,
        layer_types=FAMILY.layer_pattern,
        query_pre_attn_scalar=32,
        **SHARED,
    ),
}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, decoder_rules(config, layout))


@hookimpl
def validate_family(header, objective):
    """A GGUF has no key for the scale of the attention scores, and in the 27B it is not that of a head's width."""
    if header.names == "hf" or header.config.get("num_hidden_layers") != 62:
        return []
    problem, hint = "the file does not say how attention scores are scaled", "Import the 27B from its safetensors."
    where = {"subject": header.path, "field": "query_pre_attn_scalar"}
    return [Finding(rule=rules.PREFLIGHT_003, problem=problem, expected="a value", found="nothing", hint=hint, **where)]

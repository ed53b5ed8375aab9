"""Gemma 2: norms before and behind each branch, soft caps, and a sliding window in every other layer."""

from apr_train.family import DecoderConfig, FamilyInfo, Finding, NameMap, decoder_rules, hookimpl, read_config, rules

CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
FAMILY = FamilyInfo(
    name="gemma2",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("Gemma2ForCausalLM", "Gemma2Model"),
    model_type="gemma2",
    gguf_architectures=("gemma2",),
    presets=("2b", "tiny"),
    default_preset="2b",
    parameter_counts={"2b": 2_614_341_888, "tiny": 213_568},
    config_keys=("sliding_window", "layer_types", "query_pre_attn_scalar", *CAPS),
    config_names={"hidden_act": "hidden_activation"},
    implied={"hidden_act": "gelu_pytorch_tanh", "rope_theta": 10_000.0, **CAPS},
    fixed={"norm_position": "both", "norm_offset": 1.0, "scale_embedding": True},
    layer_pattern=("sliding_attention", "full_attention"),
    never_permuted=True,
)
SHARED = {"rms_norm_eps": 1e-6, "tie_word_embeddings": True, **CAPS, **FAMILY.fixed}
SHARED |= {"hidden_act": "gelu_pytorch_tanh", "rope_theta": 10_000.0}
PRESETS = {
    "2b": DecoderConfig(
        vocab_size=256_000,
        hidden_size=2304,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        intermediate_size=9216,
        max_position_embeddings=8192,
        sliding_window=4096,
        layer_types=FAMILY.layer_pattern * 13,
        query_pre_attn_scalar=256,
        **SHARED,
    ),
    "tiny": DecoderConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=256,
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
    if header.names == "hf" or header.config.get("num_hidden_layers") != 46:
        return []
    problem, hint = "the file does not say how attention scores are scaled", "Import the 27B from its safetensors."
    where = {"subject": header.path, "field": "query_pre_attn_scalar"}
    return [Finding(rule=rules.PREFLIGHT_003, problem=problem, expected="a value", found="nothing", hint=hint, **where)]

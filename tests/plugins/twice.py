"""A name that two distributions offer."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, hookimpl, rename

FAMILY = FamilyInfo(
    name="twice",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("TwiceForCausalLM",),
    model_type="twice",
    presets=("tiny", "small"),
    default_preset="tiny",
)


@hookimpl
def build_config(preset, header):
    if header is not None:
        return DecoderConfig.from_header(header)
    return DecoderConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        max_position_embeddings=64,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )


@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, [rename("model.norm.weight", "norm.weight", "hidden_size")])


@hookimpl
def validate_family(header, objective):
    return []


@hookimpl
def attention_impl(config):
    return ["sdpa", "eager"]


@hookimpl
def build_model(config, attention):
    return None

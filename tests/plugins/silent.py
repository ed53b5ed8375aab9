"""A family whose blocks hold a gate that no forward pass calls: it is drawn, saved, and never learnt."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl, rename

FAMILY = FamilyInfo(
    name="silent",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("SilentForCausalLM",),
    model_type="silent",
    presets=("tiny",),
    default_preset="tiny",
)


@hookimpl
def build_config(preset, header):
    if header is not None:
        return DecoderConfig.from_header(header)
    return DecoderConfig(
        vocab_size=320,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=64,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )


@hookimpl
def map_tensor_names(config, layout):
    layer = "layers.{layer}.mlp_gate.weight"
    return NameMap.for_config(config, decoder_rules(config, layout, add=[rename(f"model.{layer}", layer, "hidden_size")]))


@hookimpl
def build_model(config, attention):
    from apr_train.model import Decoder, DecoderBlock, RMSNorm

    class Block(DecoderBlock):
        def __init__(self, config, backend, layer):
            super().__init__(config, backend, layer)
            self.mlp_gate = RMSNorm(config.hidden_size, config.rms_norm_eps)

    return Decoder(config, attention, block=Block)

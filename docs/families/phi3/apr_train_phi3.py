"""Phi-3: a Llama whose files hold q, k and v in one matrix, gate and up in another; LongRoPE for 128k tokens."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl, read_config, split

FAMILY = FamilyInfo(
    name="phi3",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("Phi3ForCausalLM", "Phi3Model"),
    model_type="phi3",
    gguf_architectures=("phi3",),
    presets=("mini-4k", "tiny"),
    default_preset="mini-4k",
    parameter_counts={"mini-4k": 3_821_079_552, "tiny": 229_696},
    config_keys=("sliding_window", "partial_rotary_factor"),
    layer_pattern=("sliding_attention",),
    never_permuted=True,
)
SHARED = {"rope_theta": 10_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
PRESETS = {
    "mini-4k": DecoderConfig(
        vocab_size=32_064,
        hidden_size=3072,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=8192,
        max_position_embeddings=4096,
        sliding_window=2047,
        layer_types=FAMILY.layer_pattern * 32,
        **SHARED,
    ),
    "tiny": DecoderConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=192,
        max_position_embeddings=512,
        **SHARED,
    ),
}
Q, KV = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
FUSED = {  # their names in Hugging Face's files and in GGUF → our modules in it, with their rows
    ("self_attn.qkv_proj", "attn_qkv"): {"self_attn.q_proj": Q, "self_attn.k_proj": KV, "self_attn.v_proj": KV},
    ("mlp.gate_up_proj", "ffn_up"): {"mlp.gate_proj": "intermediate_size", "mlp.up_proj": "intermediate_size"},
}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    block = "blk.{layer}." if layout.names == "gguf" else f"{'' if layout.bare else 'model.'}layers.{{layer}}."
    add, drop = [], []
    for names, parts in FUSED.items():
        fused = block + names[layout.names == "gguf"]
        rows = [(f"layers.{{layer}}.{stem}.weight", size) for stem, size in parts.items()]
        add.append(split(f"{fused}.weight", rows, "hidden_size"))
        drop += parts
    return NameMap.for_config(config, decoder_rules(config, layout, add=add, drop=drop))

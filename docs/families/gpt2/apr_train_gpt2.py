"""GPT-2: LayerNorm, learnt positions, and matrices that files hold transposed, q, k and v in one."""

from apr_train.family import (
    DecoderConfig,
    FamilyInfo,
    NameMap,
    Transpose,
    decoder_rules,
    hookimpl,
    ignored,
    read_config,
    rename,
    split,
    transpose,
)

SIZE_KEYS = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
SIZE_KEYS |= {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
OTHER_KEYS = {"hidden_act": "activation_function", "layer_norm_eps": "layer_norm_epsilon"}
BIASES = dict.fromkeys(("attention_bias", "attention_output_bias", "mlp_bias"), True)
FAMILY = FamilyInfo(
    name="gpt2",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("GPT2LMHeadModel", "GPT2Model"),
    model_type="gpt2",
    gguf_architectures=("gpt2",),
    presets=("124m", "tiny"),
    default_preset="124m",
    parameter_counts={"124m": 124_439_808, "tiny": 198_400},
    base_prefix="transformer.",
    config_keys=("layer_norm_eps",),
    config_names=SIZE_KEYS | OTHER_KEYS,
    fixed={"norm": "layer", "learned_positions": True, "gated_mlp": False, **BIASES},
    implied={"hidden_act": "gelu_new", "num_key_value_heads": "num_attention_heads", "intermediate_size": "4*hidden_size"},
    never_permuted=True,
)
SIZES = {"124m": (50_257, 768, 12, 12, 1024), "tiny": (1024, 64, 2, 4, 512)}
PRESETS = {
    name: DecoderConfig(
        **dict(zip(SIZE_KEYS, (hidden, layers, heads, 4 * hidden, positions), strict=True)),
        **FAMILY.fixed | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "tie_word_embeddings": True},
        vocab_size=vocabulary,
        num_key_value_heads=heads,
    )
    for name, (vocabulary, hidden, layers, heads, positions) in SIZES.items()
}
TABLES = {"layers": "h", "embed_tokens": "wte", "embed_positions": "wpe"}
NORMS = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "norm": "ln_f"}
H, I = "hidden_size", "intermediate_size"  # noqa: E741
MATRICES = {"self_attn.o_proj": ("attn.c_proj", H, H), "mlp.up_proj": ("mlp.c_fc", I, H), "mlp.down_proj": ("mlp.c_proj", H, I)}
FUSED = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    prefix, in_gguf = FAMILY.base_prefix, layout.names == "gguf"
    block = "blk.{layer}." if in_gguf else f"{'' if layout.bare else prefix}h.{{layer}}."
    qkv, turned = (block + "attn_qkv", {}) if in_gguf else (block + "attn.c_attn", {"dim": 1, "operation": Transpose()})
    weights, biases = ([(f"layers.{{layer}}.{stem}.{part}", H) for stem in FUSED] for part in ("weight", "bias"))
    drop = FUSED if in_gguf else [*FUSED, *MATRICES]
    add = [split(f"{qkv}.weight", weights, H, **turned), split(f"{qkv}.bias", biases)]
    if not in_gguf:
        add += [ignored(f"{block}attn.{name}", "a saved causal mask") for name in ("bias", "masked_bias")]
        for ours, (theirs, rows, columns) in MATRICES.items():
            add.append(transpose(f"{block}{theirs}.weight", f"layers.{{layer}}.{ours}.weight", rows, columns))
            add.append(rename(f"{block}{theirs}.bias", f"layers.{{layer}}.{ours}.bias", rows))
    return NameMap.for_config(config, decoder_rules(config, layout, prefix=prefix, names=TABLES | NORMS, add=add, drop=drop))

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
    base_prefix="transformer.",
    config_keys=("layer_norm_eps",),
    config_names={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function",
        "layer_norm_eps": "layer_norm_epsilon",
    },
    fixed={
        "norm": "layer",
        "learned_positions": True,
        "gated_mlp": False,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
    },
    implied={"hidden_act": "gelu_new", "num_key_value_heads": "num_attention_heads", "intermediate_size": "4*hidden_size"},
    never_permuted=True,
)
SHARED = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "tie_word_embeddings": True, **FAMILY.fixed}
SIZES = {"124m": (50_257, 768, 12, 12, 1024), "tiny": (1024, 64, 2, 4, 512)}
PRESETS = {
    name: DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=positions,
        **SHARED,
    )
    for name, (vocabulary, hidden, layers, heads, positions) in SIZES.items()
}
NAMES = {
    "layers": "h",
    "embed_tokens": "wte",
    "embed_positions": "wpe",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "norm": "ln_f",
}
MATRICES = {"self_attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
SHAPES = {"mlp.up_proj": ("intermediate_size", "hidden_size"), "mlp.down_proj": ("hidden_size", "intermediate_size")}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
    prefix = FAMILY.base_prefix
    fused = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    drop, add, in_gguf = [*fused], [], layout.names == "gguf"
    block = "blk.{layer}." if in_gguf else f"{'' if layout.bare else prefix}h.{{layer}}."
    qkv = block + ("attn_qkv" if in_gguf else "attn.c_attn")
    weights, biases = ([(f"layers.{{layer}}.{stem}.{part}", "hidden_size") for stem in fused] for part in ("weight", "bias"))
    turned = {} if in_gguf else {"dim": 1, "operation": Transpose()}
    add += [split(f"{qkv}.weight", weights, "hidden_size", **turned), split(f"{qkv}.bias", biases)]
    if not in_gguf:
        add += [ignored(f"{block}attn.{name}", "a saved causal mask") for name in ("bias", "masked_bias")]
        for ours, theirs in MATRICES.items():
            rows, columns = SHAPES.get(ours, ("hidden_size", "hidden_size"))
            add.append(transpose(f"{block}{theirs}.weight", f"layers.{{layer}}.{ours}.weight", rows, columns))
            add.append(rename(f"{block}{theirs}.bias", f"layers.{{layer}}.{ours}.bias", rows))
        drop += MATRICES
    return NameMap.for_config(config, decoder_rules(config, layout, prefix=prefix, names=NAMES, add=add, drop=drop))

"""GPT-2: LayerNorm, learnt positions, and matrices that files hold transposed, q, k and v in one."""

from apr_train.family import DecoderConfig, FamilyInfo, NameMap, Transpose, decoder_rules, hookimpl, read_config, split, transpose

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
    implied={"num_key_value_heads": "num_attention_heads", "intermediate_size": "4*hidden_size"},
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

"""Configs that are read wrong from files, and presets with a wrong number."""

from tests.mutants.defect import Defect, plugin, reads

DEFECTS = (
    # reading a file
    Defect("theta 10,000 for 1,000,000 read from files", "qwen2", reads(rope_theta=10_000.0)),
    Defect("eps 1e-5 for 1e-6 read from files", "qwen2", reads(rms_norm_eps=1e-5)),
    Defect("LayerNorm eps 1e-12 for 1e-5 read from files", "codebert", reads(layer_norm_eps=1e-12)),
    Defect("the head loaded as a second matrix", "qwen2", reads(tie_word_embeddings=False)),
    Defect(
        "the head tied in an untied model",
        ("qwen2", "olmo2"),
        reads(tie_word_embeddings=True),
        reference={"tie_word_embeddings": False},
    ),
    Defect("all biases left in the file", "qwen2", reads(attention_bias=False)),
    Defect("another activation read from files", "llama370m", reads(hidden_act="gelu")),
    Defect("no window read from files", "gemma2", reads(sliding_window=None, layer_types=None)),
    Defect("no soft cap read from files", "gemma2", reads(final_logit_softcapping=None)),
    Defect("the factor on attention scores not read", "granite", reads(attention_multiplier=None)),
    # the card
    Defect(
        "the activation by its exact form on the card, where a GGUF says nothing",
        "starcoder2",
        plugin('implied={"hidden_act": "gelu_pytorch_tanh", ', 'implied={"hidden_act": "gelu", '),
    ),
    Defect(
        "a field left out of config_keys",
        "granite",
        plugin("config_keys=tuple(FACTORS)", "config_keys=tuple(FACTORS.keys() - {'residual_multiplier'})"),
    ),
    Defect(
        "sliding and full layers the other way round on the card",
        "gemma2",
        plugin(
            'layer_pattern=("sliding_attention", "full_attention")', 'layer_pattern=("full_attention", "sliding_attention")'
        ),
    ),
    Defect(
        "experts' weights not normalised on the card",
        "mixtral",
        plugin('fixed={"norm_topk_prob": True}', 'fixed={"norm_topk_prob": False}'),
    ),
    Defect("embeddings not scaled on the card", "gemma2", plugin(', "scale_embedding": True}', "}")),
    Defect(
        "the key of the biases misspelt on the card",
        "starcoder2",
        plugin('dict.fromkeys(BIASES, "use_bias")', 'dict.fromkeys(BIASES, "use_biases")'),
    ),
    Defect(
        "positions counted after the padding on the card",
        "bert",
        plugin('"positions_after_padding": False', '"positions_after_padding": True'),
    ),
    # presets
    Defect("theta of a preset", "qwen3", plugin('"rope_theta": 1_000_000.0', '"rope_theta": 10_000.0')),
    Defect("head_dim of a preset", "qwen3", plugin("head_dim=128", "head_dim=64")),
    Defect("width of a preset's MLP", "olmo2", plugin("intermediate_size=8192", "intermediate_size=8129")),
    Defect("layers of a preset", "gpt2", plugin("(50_257, 768, 12, 12, 1024)", "(50_257, 768, 11, 12, 1024)")),
    Defect("positions of a preset", "gpt2", plugin("(50_257, 768, 12, 12, 1024)", "(50_257, 768, 12, 12, 2048)")),
    Defect(
        "tie of a preset",
        "qwen2",
        plugin('"7b": _published(3584, 28, 28, 4, 18_944, tied=False)', '"7b": _published(3584, 28, 28, 4, 18_944, tied=True)'),
    ),
    Defect(
        "kv heads of a preset",
        "starcoder2",
        plugin(
            "num_attention_heads=24,\n        num_key_value_heads=2", "num_attention_heads=24,\n        num_key_value_heads=4"
        ),
    ),
    Defect("vocabulary of a preset", "codebert", plugin("vocab_size=50_265", "vocab_size=50_256")),
    Defect("width of a preset's experts", "mixtral", plugin("intermediate_size=14_336", "intermediate_size=14_436")),
    Defect("eps of a preset", "bert", plugin('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-5')),
    Defect("window of a preset", "gemma2", plugin("**OWN,\n", '**OWN | {"sliding_window": 1024},\n')),
)

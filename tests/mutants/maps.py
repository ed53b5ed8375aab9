"""Name maps that are wrong: in Hugging Face's names, in GGUF's, in bare files, in experts stacked or of a tensor each."""

from tests.mutants.defect import Defect, core, plugin

RULES = "decoder_rules(config, layout)"
ROWS = "family.operations:RopeRowPermutation"


def renamed(**stems: str) -> str:
    """A call of `decoder_rules` in which two modules' names are exchanged, `names=` for Hugging Face's and `gguf=`."""
    ((argument, pair),) = stems.items()
    first, second = pair.split("<>")
    return f"decoder_rules(config, layout, {argument}={{{first!r}: {second!r}, {second!r}: {first!r}}})"


def renamed_gguf(first: str, second: str, names: tuple[str, str]) -> str:
    """The same for GGUF, where a module has another name than here."""
    return f"decoder_rules(config, layout, gguf={{{first!r}: {names[1]!r}, {second!r}: {names[0]!r}}})"


DEFECTS = (
    # Hugging Face's names
    Defect(
        "q and k exchanged in Hugging Face's names",
        "qwen2",
        plugin(RULES, renamed(names="self_attn.q_proj<>self_attn.k_proj")),
        reference={"num_key_value_heads": 8},
    ),
    Defect(
        "gate and up exchanged in Hugging Face's names", "qwen2", plugin(RULES, renamed(names="mlp.gate_proj<>mlp.up_proj"))
    ),
    Defect(
        "the two norms of a block exchanged in Hugging Face's names",
        "llama370m",
        plugin(RULES, renamed(names="input_layernorm<>post_attention_layernorm")),
    ),
    Defect(
        "q_norm and k_norm exchanged in Hugging Face's names",
        "qwen3",
        plugin(RULES, renamed(names="self_attn.q_norm<>self_attn.k_norm")),
    ),
    Defect(
        "the norms behind attention and MLP exchanged in Hugging Face's names",
        "olmo2",
        plugin(RULES, renamed(names="post_attention_layernorm<>post_feedforward_layernorm")),
    ),
    Defect(
        "a square matrix transposed on the way in",
        "qwen2",
        core(
            "family.operations:Identity.to_parameter",
            "return tensor\n",
            "return tensor.T if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] else tensor\n",
        ),
    ),
    Defect(
        "one fused matrix of a GPT-2 not transposed",
        "gpt2",
        plugin(
            'add.append(transpose(f"{block}{theirs}.weight", f"layers.{{layer}}.{ours}.weight", rows, columns))',
            "make = rename if rows == columns else transpose\n"
            '            add.append(make(f"{block}{theirs}.weight", f"layers.{{layer}}.{ours}.weight", rows, columns))',
        ),
    ),
    Defect(
        "q, k and v in another order in a fused matrix",
        "gpt2",
        plugin(
            '["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]',
            '["self_attn.q_proj", "self_attn.v_proj", "self_attn.k_proj"]',
        ),
    ),
    Defect(
        "gate and up exchanged in a fused matrix",
        "phi3",
        plugin(
            '{"mlp.gate_proj": "intermediate_size", "mlp.up_proj": "intermediate_size"}',
            '{"mlp.up_proj": "intermediate_size", "mlp.gate_proj": "intermediate_size"}',
        ),
    ),
    Defect(
        "the two norms of an encoder's block exchanged",
        "bert",
        (
            plugin('"attention_norm": ("attention.output.LayerNorm", H)', '"attention_norm": ("output.LayerNorm", H)'),
            plugin('"mlp_norm": ("output.LayerNorm", H)', '"mlp_norm": ("attention.output.LayerNorm", H)'),
        ),
    ),
    Defect(
        "query and key exchanged in an encoder",
        "codebert",
        (
            plugin('("attention.self.query", "attention.q_proj",', '("attention.self.query", "attention.k_proj",'),
            plugin('("attention.self.key", "attention.k_proj",', '("attention.self.key", "attention.q_proj",'),
        ),
    ),
    Defect(
        "a bias left out of the map",
        "starcoder2",
        plugin(
            "decoder_rules(config, layout, names=NAMES)",
            '[rule for rule in decoder_rules(config, layout, names=NAMES) if not rule.checkpoint.endswith("c_proj.bias")]',
        ),
    ),
    Defect(
        "norm weights declared as not used",
        "qwen3",
        plugin(
            RULES,
            f"[rule for rule in {RULES} if not rule.checkpoint.endswith(('q_norm.weight', 'k_norm.weight'))]",
        ),
    ),
    # GGUF
    Defect(
        "q_norm and k_norm exchanged in GGUF's names only",
        "qwen3",
        plugin(RULES, renamed_gguf("self_attn.q_norm", "self_attn.k_norm", ("attn_q_norm", "attn_k_norm"))),
    ),
    Defect(
        "the two norms of a block exchanged in GGUF's names only",
        ("llama370m", "qwen2"),
        plugin(RULES, renamed_gguf("input_layernorm", "post_attention_layernorm", ("attn_norm", "ffn_norm"))),
    ),
    Defect(
        "gate and up exchanged in GGUF's names only",
        "olmo2",
        plugin(RULES, renamed_gguf("mlp.gate_proj", "mlp.up_proj", ("ffn_gate", "ffn_up"))),
    ),
    Defect(
        "a GGUF's name that llama.cpp does not have",
        "olmo2",
        plugin(RULES, 'decoder_rules(config, layout, gguf={"post_feedforward_layernorm": "post_ffn_norm"})'),
    ),
    Defect(
        "the offset of a Gemma's norms forgotten in GGUF",
        "gemma2",
        core("family.decoder_names:_Spelling._rule", "if line.norm and offset and", "if False and"),
    ),
    Defect(
        "the row permutation of a GGUF Llama dropped on the way in",
        "llama370m",
        core(f"{ROWS}.to_parameter", "return tensor.reshape", "return tensor if True else tensor.reshape"),
    ),
    Defect(
        "the row permutation in the wrong direction on the way in",
        "llama370m",
        core(f"{ROWS}.to_parameter", "rows // self.heads // 2, 2, -1", "2, rows // self.heads // 2, -1"),
    ),
    Defect(
        "the row permutation in the wrong direction both ways",
        "llama370m",
        (
            core(f"{ROWS}.to_parameter", "rows // self.heads // 2, 2, -1", "2, rows // self.heads // 2, -1"),
            core(f"{ROWS}.to_checkpoint", "2, rows // self.heads // 2, -1", "rows // self.heads // 2, 2, -1"),
        ),
    ),
    Defect(
        "the rows of a GGUF Qwen2 permuted",
        "qwen2",
        plugin(
            RULES,
            'decoder_rules(config, Layout(names="gguf", rope_rows="adjacent") if layout.names == "gguf" else layout)',
        ),
    ),
    # bare files
    Defect(
        "bare files looked for under the headed class's prefix",
        ("qwen3", "mixtral"),
        core("family.decoder_names:_Spelling.hf", "if self.layout.bare or line is _HEAD", "if line is _HEAD"),
    ),
    Defect(
        "a bare encoder asked for a head",
        "bert",
        plugin('base, fresh = ("", "head") if layout.bare', 'base, fresh = ("", None) if layout.bare'),
    ),
    Defect(
        "a bare decoder asked for a head",
        "olmo2",
        core("family.decoder_names:_Spelling.head", "group = FRESH_HEAD if self.layout.bare else None", "group = None"),
    ),
    Defect(
        "the two norms of a block exchanged in bare files only",
        "starcoder2",
        plugin(
            "names=NAMES)",
            "names=NAMES | ({'input_layernorm': 'post_attention_layernorm', 'post_attention_layernorm': 'input_layernorm'}"
            " if layout.bare else {}))",
        ),
    ),
    # experts
    Defect(
        "gate and up exchanged in stacked experts",
        "mixtral",
        core(
            "family.decoder_names:_Spelling.stacked",
            'fused = [(f"{ours}.gate_proj", width), (f"{ours}.up_proj", width)]',
            'fused = [(f"{ours}.up_proj", width), (f"{ours}.gate_proj", width)]',
        ),
    ),
    Defect(
        "gate and up exchanged in experts of a tensor each",
        "mixtral",
        (
            plugin(
                '"mlp.experts.gate_proj": "block_sparse_moe.experts.{expert}.w1"',
                '"mlp.experts.gate_proj": "block_sparse_moe.experts.{expert}.w3"',
            ),
            plugin(
                '"mlp.experts.up_proj": "block_sparse_moe.experts.{expert}.w3"',
                '"mlp.experts.up_proj": "block_sparse_moe.experts.{expert}.w1"',
            ),
        ),
    ),
    Defect(
        "experts numbered from the last one in files",
        "mixtral",
        core(
            "family.name_map:_expand",
            "parameter_part=Region(0, expert or 0, 1, index=True)",
            "parameter_part=Region(0, sizes['num_experts'] - 1 - (expert or 0), 1, index=True)",
        ),
    ),
)

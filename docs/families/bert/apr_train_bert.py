"""BERT: an encoder whose positions start at zero, with its masked-LM head."""

from apr_train.family import EncoderConfig, FamilyInfo, NameMap, NameMapError, hookimpl, ignored, read_config, rename, tie

FAMILY = FamilyInfo(
    name="bert",
    api_version="1.0",
    kind="encoder",
    objectives=("masked-lm",),
    hf_classes=("BertForMaskedLM", "BertModel"),
    model_type="bert",
    presets=("base-uncased", "tiny"),
    default_preset="base-uncased",
    parameter_counts={"base-uncased": 109_514_298, "tiny": 179_264},
    base_prefix="bert.",
    fixed={"positions_after_padding": False},
)
SHARED = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0, "tie_word_embeddings": True, **FAMILY.fixed}
SIZES = {"base-uncased": (30_522, 768, 12, 12, 512), "tiny": (1024, 64, 2, 4, 128)}
PRESETS = {
    name: EncoderConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=positions,
        **SHARED,
    )
    for name, (vocabulary, hidden, layers, heads, positions) in SIZES.items()
}
H, V = "hidden_size", "vocab_size"
BLOCK = {  # our module → theirs, and the shape of its weight; each has a bias
    "attention.q_proj": ("attention.self.query", H, H),
    "attention.k_proj": ("attention.self.key", H, H),
    "attention.v_proj": ("attention.self.value", H, H),
    "attention.o_proj": ("attention.output.dense", H, H),
    "attention_norm": ("attention.output.LayerNorm", H),
    "mlp.up_proj": ("intermediate.dense", "intermediate_size", H),
    "mlp.down_proj": ("output.dense", H, "intermediate_size"),
    "mlp_norm": ("output.LayerNorm", H),
}


@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


def pair(theirs, ours, *shape, fresh_group=None):
    yield rename(f"{theirs}.weight", f"{ours}.weight", *shape, fresh_group=fresh_group)
    yield rename(f"{theirs}.bias", f"{ours}.bias", shape[0], fresh_group=fresh_group)


@hookimpl
def map_tensor_names(config, layout):
    if layout.names != "hf":
        raise NameMapError("GGUF files of a BERT have no masked-LM head", expected="hf", found=layout.names)
    base, fresh = ("", "head") if layout.bare else (FAMILY.base_prefix, None)
    rules = [*pair(f"{base}embeddings.LayerNorm", "embeddings.norm", H)]
    for table, rows in (("word", V), ("position", "max_position_embeddings"), ("token_type", "type_vocab_size")):
        name = f"embeddings.{table}_embeddings.weight"
        rules.append(rename(base + name, name, rows, H))
    for ours, (theirs, *shape) in BLOCK.items():
        rules += pair(f"{base}encoder.layer.{{layer}}.{theirs}", f"layers.{{layer}}.{ours}", *shape)
    head = "cls.predictions"
    rules += pair(f"{head}.transform.dense", "lm_head.dense", H, H, fresh_group=fresh)
    rules += pair(f"{head}.transform.LayerNorm", "lm_head.norm", H, fresh_group=fresh)
    rules.append(rename(f"{head}.bias", "lm_head.bias", V, fresh_group=fresh))
    rules.append(tie(f"{head}.decoder.bias", "lm_head.bias", V))
    rules.append(tie(f"{head}.decoder.weight", "embeddings.word_embeddings.weight", V, H))
    rules += [ignored(f"{base}pooler.dense.{part}", "the pooler serves sentence pairs") for part in ("weight", "bias")]
    rules += [ignored(f"cls.seq_relationship.{part}", "next-sentence prediction is not trained") for part in ("weight", "bias")]
    return NameMap.for_config(config, [*rules, ignored(f"{base}embeddings.position_ids", "counted from the tokens")])

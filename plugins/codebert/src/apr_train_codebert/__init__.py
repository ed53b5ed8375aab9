"""The CodeBERT family: RoBERTa's encoder with its masked-LM head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from apr_train.family import (
    EncoderConfig,
    FamilyInfo,
    Finding,
    Header,
    Layout,
    ModelConfig,
    NameMap,
    NameMapError,
    Rule,
    hookimpl,
    ignored,
    read_config,
    rename,
    rules,
    tie,
)

PRESETS: Mapping[str, EncoderConfig] = {
    "base": EncoderConfig(
        vocab_size=50_265,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        tie_word_embeddings=True,
    ),
    "tiny": EncoderConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=258,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        tie_word_embeddings=True,
    ),
}
"""`base` is microsoft/codebert-base; `tiny` runs in seconds on a CPU."""

FAMILY = FamilyInfo(
    name="codebert",
    api_version="1.0",
    kind="encoder",
    objectives=("masked-lm",),
    hf_classes=("RobertaForMaskedLM", "RobertaModel"),
    model_type="roberta",
    presets=tuple(PRESETS),
    default_preset="base",
    parameter_counts={"base": 124_697_433, "tiny": 187_520},
    base_prefix="roberta.",
)

# (Hugging Face's stem, our stem, rows, columns) of every linear layer of a block: all have biases
_LINEARS = (
    ("attention.self.query", "attention.q_proj", "hidden_size", "hidden_size"),
    ("attention.self.key", "attention.k_proj", "hidden_size", "hidden_size"),
    ("attention.self.value", "attention.v_proj", "hidden_size", "hidden_size"),
    ("attention.output.dense", "attention.o_proj", "hidden_size", "hidden_size"),
    ("intermediate.dense", "mlp.up_proj", "intermediate_size", "hidden_size"),
    ("output.dense", "mlp.down_proj", "hidden_size", "intermediate_size"),
)
_NORMS = (("attention.output.LayerNorm", "attention_norm"), ("output.LayerNorm", "mlp_norm"))
_TABLES = (("word", "vocab_size"), ("position", "max_position_embeddings"), ("token_type", "type_vocab_size"))
_HEAD = "lm_head"


@hookimpl
def build_config(preset: str | None, header: Header | None) -> ModelConfig:
    """Look the preset up, or read the file's own numbers."""
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config: EncoderConfig, layout: Layout) -> NameMap:
    """Give RobertaForMaskedLM's names, or (bare) RobertaModel's, whose head is freshly initialised."""
    if layout.names != "hf":
        raise NameMapError("a CodeBERT file has Hugging Face's tensor names", expected="hf", found=layout.names)
    base = "" if layout.bare else FAMILY.base_prefix
    return NameMap.for_config(config, [*_encoder_rules(base), *_head_rules(config, _HEAD if layout.bare else None)])


def _pair(checkpoint: str, parameter: str, *shape: str, fresh_group: str | None = None) -> Iterator[Rule]:
    """A weight of the given shape, and a bias with a number per row."""
    yield rename(f"{checkpoint}.weight", f"{parameter}.weight", *shape, fresh_group=fresh_group)
    yield rename(f"{checkpoint}.bias", f"{parameter}.bias", shape[0], fresh_group=fresh_group)


def _encoder_rules(base: str) -> Iterator[Rule]:
    for table, rows in _TABLES:
        name = f"embeddings.{table}_embeddings.weight"
        yield rename(base + name, name, rows, "hidden_size")
    yield from _pair(f"{base}embeddings.LayerNorm", "embeddings.norm", "hidden_size")
    for theirs, ours, rows, columns in _LINEARS:
        yield from _pair(f"{base}encoder.layer.{{layer}}.{theirs}", f"layers.{{layer}}.{ours}", rows, columns)
    for theirs, ours in _NORMS:
        yield from _pair(f"{base}encoder.layer.{{layer}}.{theirs}", f"layers.{{layer}}.{ours}", "hidden_size")
    yield ignored(f"{base}embeddings.position_ids", "saved position ids: they are counted from the tokens")
    for part in ("weight", "bias"):
        yield ignored(f"{base}pooler.dense.{part}", "the pooler serves sentence classification, not masked-LM training")


def _head_rules(config: EncoderConfig, fresh: str | None) -> Iterator[Rule]:
    yield from _pair("lm_head.dense", "lm_head.dense", "hidden_size", "hidden_size", fresh_group=fresh)
    yield from _pair("lm_head.layer_norm", "lm_head.norm", "hidden_size", fresh_group=fresh)
    if config.tie_word_embeddings:
        yield rename("lm_head.bias", "lm_head.bias", "vocab_size", fresh_group=fresh)
        yield tie("lm_head.decoder.bias", "lm_head.bias", "vocab_size")
        yield tie("lm_head.decoder.weight", "embeddings.word_embeddings.weight", "vocab_size", "hidden_size")
    else:  # transformers 5 ties the two biases with the weights or not at all, and adds the decoder's
        yield rename("lm_head.decoder.weight", "lm_head.decoder.weight", "vocab_size", "hidden_size", fresh_group=fresh)
        yield rename("lm_head.decoder.bias", "lm_head.bias", "vocab_size", fresh_group=fresh)
        yield ignored("lm_head.bias", "an untied head adds lm_head.decoder.bias: this one is in no formula")


@hookimpl
def validate_family(header: Header, objective: str) -> list[Finding]:
    """Refuse a table of positions with no row for a token: the first rows, up to the padding's, are never used."""
    rows, pad = header.config.get("max_position_embeddings"), header.config.get("pad_token_id")
    if not isinstance(rows, int) or not isinstance(pad, int) or rows > pad + 1:
        return []
    return [
        Finding(
            rule=rules.INIT_005,
            subject=header.path,
            field="max_position_embeddings",
            problem="no position is left for a token: position ids start at pad_token_id + 1",
            expected=f"more than {pad + 1} rows",
            found=str(rows),
        )
    ]

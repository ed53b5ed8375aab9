"""The `.apr` metadata keys that have a type of their own: one table, in the order in which the reference writer emits them."""

from __future__ import annotations

from typing import Any, Literal

from attrs import frozen


@frozen
class Part:
    """One field of a typed key's table."""

    name: str
    type: Literal["text", "count", "flag"]
    bits: int = 64
    """Width of a `count`."""
    optional: bool = False
    """Whether it may be absent or null."""


@frozen
class Key:
    """One typed key, and what every part of the package must know of it."""

    name: str
    type: Literal["text", "count", "float", "table"] = "text"
    """`count` is an unsigned integer, `float` a 32-bit one, `table` a JSON object."""
    bits: int = 64
    """Width of a `count`."""
    fields: tuple[Part, ...] = ()
    """What a `table` must hold; the reference reader drops all metadata over a table that lacks one of them."""
    strings: bool = False
    """Whether every value of a `table` is text."""
    hf: str | None = None
    """The name in Hugging Face's config.json, of a key that is part of the model's config."""
    aliases: tuple[str, ...] = ()
    """Other spellings, read in this order when the key is unset, and never written."""
    provenance: bool = False
    """Whether the key says where the model comes from, and not what it is."""
    stamped: bool = False
    """Whether `apr-train stamp` sets it."""
    is_license: bool = False
    """Whether its text is an SPDX expression."""
    null_when_unset: bool = False
    """Whether it is written as null when unset: what must never be silently absent."""
    default: Any = None
    """What is written when it is unset; None: nothing."""


KEYS = (
    Key("model_type", default=""),
    Key("name", provenance=True, stamped=True),
    Key("description", provenance=True, stamped=True),
    Key("author", provenance=True, stamped=True),
    Key("license", provenance=True, stamped=True, is_license=True, null_when_unset=True),
    Key("data_source", provenance=True, stamped=True, null_when_unset=True),
    Key("data_license", provenance=True, stamped=True, is_license=True, null_when_unset=True),
    Key("version", provenance=True, stamped=True),
    Key("source", provenance=True),
    Key("original_format", provenance=True),
    Key("created_at", provenance=True),
    Key("total_size", "count", default=0),
    Key("param_count", "count", default=0),
    Key(
        "quantization",
        "table",
        fields=(
            Part("quant_type", "text"),
            Part("bits", "count", bits=8),
            Part("symmetric", "flag"),
            Part("block_size", "count", optional=True),
        ),
    ),
    Key(
        "sharding",
        "table",
        fields=(
            Part("shard_count", "count"),
            Part("shard_index", "count"),
            Part("total_size", "count"),
            Part("pattern", "text", optional=True),
        ),
    ),
    Key("chat_template"),
    Key("chat_format"),
    Key("special_tokens", "table", strings=True),
    Key("architecture"),
    Key("hf_architecture"),
    Key("hf_model_type"),
    Key("hidden_size", "count", hf="hidden_size", aliases=("hidden_dim", "d_model", "n_embd")),
    Key("num_layers", "count", hf="num_hidden_layers", aliases=("num_hidden_layers", "n_layers", "n_layer")),
    Key("num_heads", "count", hf="num_attention_heads", aliases=("num_attention_heads", "n_heads", "n_head")),
    Key("num_kv_heads", "count", hf="num_key_value_heads", aliases=("num_key_value_heads", "n_kv_heads")),
    Key("vocab_size", "count", hf="vocab_size", aliases=("n_vocab",)),
    Key("intermediate_size", "count", hf="intermediate_size", aliases=("ffn_dim", "intermediate_dim", "n_inner")),
    Key(
        "max_position_embeddings",
        "count",
        hf="max_position_embeddings",
        aliases=("max_seq_len", "context_length", "n_ctx"),
    ),
    Key("rope_theta", "float", hf="rope_theta"),
    Key("rope_type", "count", bits=32),
    Key("rms_norm_eps", "float", hf="rms_norm_eps", aliases=("layer_norm_eps", "norm_eps")),
    Key("head_dim", "count", hf="head_dim"),
    Key("num_experts", "count", hf="num_experts"),
    Key("num_experts_per_tok", "count", hf="num_experts_per_tok"),
    Key("moe_intermediate_size", "count", hf="moe_intermediate_size"),
)
"""Every key that is not in this table is custom, and comes after these."""

TYPED = {key.name: key for key in KEYS}
HF_NAMES = {key.name: key.hf for key in KEYS if key.hf is not None}
"""Name → the name in Hugging Face's config.json."""
ALIASES = frozenset(alias for key in KEYS for alias in key.aliases)
FORMAT = "format"
"""Custom key with which aprender's trainers mark what they wrote; a model that was trained here is not theirs."""
KEPT = ("chat_template", "chat_format", "special_tokens", FORMAT)
"""Keys without a dot that are neither config nor provenance, and go with the model."""
BOOLEANS = frozenset({"norm_topk_prob"})
"""Custom keys that a reader of aprender's files takes for a boolean: over another value it drops all metadata."""
PROVENANCE = tuple(key.name for key in KEYS if key.provenance)
STAMPED = {key.name: key for key in KEYS if key.stamped}
ENCODER_EPS = "layer_norm_eps"
"""Hugging Face's name of an encoder's epsilon, which `.apr` has under `rms_norm_eps`."""

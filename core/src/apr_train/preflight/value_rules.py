"""Metadata values that cannot be, whatever the family: a width of zero, a word for a number."""

from __future__ import annotations

from typing import Any

from apr_train import rules
from apr_train.checkpoint.header import Header
from apr_train.errors import Finding

COUNTS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
POSITIVE = ("rope_theta", "rms_norm_eps", "layer_norm_eps", "initializer_range")
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")
LARGEST = 1 << 31
"""No size of a real model is near; a larger one is a corrupted number."""
MOST_LAYERS = 10_000
"""A name map has a line per layer: a corrupted number of layers must not cost memory."""


def bogus_values(header: Header) -> list[Finding]:
    """Every field whose value cannot be; none stops the next from being read."""
    rules = [
        (COUNTS, _is_count, "an integer > 0"),
        (POSITIVE, _is_positive, "a number > 0"),
        (FLAGS, _is_flag, "true or false"),
    ]
    return (
        [
            _finding(header, key, expected)
            for keys, fits, expected in rules
            for key in keys
            if header.config.get(key) is not None and not fits(header.config[key])
        ]
        + _layers(header)
        + _heads(header)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < LARGEST


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _finding(header: Header, key: str, expected: str) -> Finding:
    return Finding(
        rule=rules.INIT_005,
        subject=header.path,
        field=key,
        problem="the metadata has a value that cannot be",
        expected=expected,
        found=f"{header.config[key]!r:.80}",
        hint="Re-import the file from its source.",
    )


def _layers(header: Header) -> list[Finding]:
    layers: Any = header.config.get("num_hidden_layers")
    too_many = _is_count(layers) and layers > MOST_LAYERS
    return [_finding(header, "num_hidden_layers", f"at most {MOST_LAYERS}")] if too_many else []


def _heads(header: Header) -> list[Finding]:
    """Query heads share kv heads in equal groups (GQA), and rotary positions turn pairs."""
    heads: Any = header.config.get("num_attention_heads")
    kv_heads: Any = header.config.get("num_key_value_heads")
    if not (_is_count(heads) and _is_count(kv_heads) and heads % kv_heads):
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_005,
            subject=header.path,
            field="num_key_value_heads",
            problem="num_key_value_heads does not divide num_attention_heads",
            expected=f"a divisor of {heads}",
            found=str(kv_heads),
        )
    ]

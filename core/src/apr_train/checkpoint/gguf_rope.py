"""Rotary scalings that a GGUF keeps as tensors of divisors: made of a config's numbers, and read back as them. Torch-free.

llama.cpp divides each rotary frequency by its number in the table. Facts about its loader name GGUF architectures, and say
where they stand in its sources (those of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from apr_train.checkpoint.dtypes import Array, shortest_f32
from apr_train.checkpoint.gguf_keys import plain
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.implied import ORIGINAL_LENGTH, implied_attention

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
TABLES: Mapping[str, tuple[str, ...]] = {"llama3": (ROPE_FREQS,), "longrope": (ROPE_LONG, ROPE_SHORT)}
"""Kind of scaling → its tables: `[rotated dimensions / 2]` float32 each."""
READERS: Mapping[str, frozenset[str]] = {"llama3": frozenset({"llama"}), "longrope": frozenset({"phi3"})}
"""Kind of scaling → the GGUF architectures whose loader takes its tables (src/models/llama.cpp, phi3.cpp) and for which the
`gguf` package names them; granite.cpp takes the first too, but there the package has no such tensor."""
OWN_KEYS = "apr_train.rope_scaling."
"""Before Llama 3's numbers in a file that is written here: llama.cpp needs none of them, and the table alone does not tell."""
_LLAMA3: Mapping[str, type[int] | type[float]] = {
    "factor": float,
    "low_freq_factor": float,
    "high_freq_factor": float,
    ORIGINAL_LENGTH: int,
}
_PUBLISHED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL_LENGTH: 8192}
"""What the configs of Llama 3.1, 3.2 and 3.3 say; `factor` is a whole number, 8 or 32."""
_LENGTH_KEY, _ATTENTION_KEY = "rope.scaling.original_context_length", "rope.scaling.attn_factor"
_MOST = 1 << 16
"""Divisors of a table that is looked at."""
_NEAR = 1e-5
"""Relative distance of a table from its numbers: float32, by another order of operations."""


def is_table(info: TensorInfo) -> bool:
    """Whether a tensor of a file is such a table, small enough to be read with the header."""
    named = any(info.name in names for names in TABLES.values())
    return named and info.dtype == "F32" and len(info.shape) == 1 and 0 < info.shape[0] <= _MOST


def tables_of_scaling(
    scaling: Mapping[str, Any], architecture: str, *, theta: float, rotated: int, length: int
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tables and keys of Llama 3's scaling or of LongRoPE.

    Args:
        scaling: by Hugging Face's names, none left out.
        architecture: one of the kind's `READERS`.
        theta: the rotary base.
        rotated: dimensions of a head that are rotated.
        length: the model's `max_position_embeddings`.
    """
    if scaling["rope_type"] == "llama3":
        keys = {f"{OWN_KEYS}{name}": kind(scaling[name]) for name, kind in _LLAMA3.items()}
        return {ROPE_FREQS: llama3_factors(scaling, theta, rotated)}, keys
    tables = {ROPE_LONG: scaling["long_factor"], ROPE_SHORT: scaling["short_factor"]}
    usual = implied_attention(scaling["factor"], scaling[ORIGINAL_LENGTH], length)
    keys = {_LENGTH_KEY: scaling[ORIGINAL_LENGTH], _ATTENTION_KEY: float(scaling["attention_factor"] or usual)}
    return (
        {name: np.asarray(table, np.float32) for name, table in tables.items()},
        {f"{architecture}.{key}": value for key, value in keys.items()},
    )


def llama3_factors(scaling: Mapping[str, Any], theta: float, rotated: int) -> Array:
    """Llama 3's scaling as llama.cpp reads it: `[rotated / 2]` float32, a divisor for each rotary frequency.

    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils, whose frequencies are the unscaled ones by
    these.
    """
    frequencies = theta ** -(np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    turns = scaling[ORIGINAL_LENGTH] * frequencies / (2 * math.pi)
    low, high, factor = (float(scaling[name]) for name in ("low_freq_factor", "high_freq_factor", "factor"))
    ramp = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: Array = (1.0 / ((1.0 - ramp) / factor + ramp)).astype(np.float32)
    return factors


def scaling_of_tables(
    metadata: Mapping[str, Any], architecture: str, config: Mapping[str, Any], tables: Mapping[str, Array]
) -> dict[str, Any] | None:
    """The scaling by Hugging Face's names; None where the tables are of no kind that the architecture reads, or lack a number.

    Llama 3's numbers are those that the file has under `OWN_KEYS`, else the published ones; they count only where the table
    is theirs. A table that has not one number for each pair of rotated dimensions is none.
    """
    pairs = _pairs(metadata, architecture, config)
    tables = {name: table for name, table in tables.items() if len(table) == pairs}
    if ROPE_FREQS in tables and architecture in READERS["llama3"]:
        return _llama3(metadata, config, tables[ROPE_FREQS])
    if {*TABLES["longrope"]} <= {*tables} and architecture in READERS["longrope"]:
        return _longrope(metadata, architecture, config, tables)
    return None


def _pairs(metadata: Mapping[str, Any], architecture: str, config: Mapping[str, Any]) -> int | None:
    """Half of a head's rotated dimensions, by the file's keys."""
    width = metadata.get(f"{architecture}.rope.dimension_count", config.get("head_dim"))
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if width is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        width = hidden // heads
    return width // 2 if isinstance(width, int) else None


def _llama3(metadata: Mapping[str, Any], config: Mapping[str, Any], table: Array) -> dict[str, Any] | None:
    own = {name: plain(metadata.get(OWN_KEYS + name)) for name in _LLAMA3}
    largest = float(table.max(initial=1.0))
    published = {"factor": float(round(largest)) if math.isfinite(largest) else 0.0, **_PUBLISHED}
    numbers = published if None in own.values() else own
    theta = config.get("rope_theta")
    if not all(_is_positive(number) for number in (theta, *numbers.values())):
        return None
    if numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        return None
    with np.errstate(all="ignore"):
        expected = llama3_factors(numbers, float(theta), 2 * len(table))  # type: ignore[arg-type]  # a number, as was seen
    return {"rope_type": "llama3", **numbers} if np.allclose(table, expected, rtol=_NEAR, atol=0) else None


def _longrope(
    metadata: Mapping[str, Any], architecture: str, config: Mapping[str, Any], tables: Mapping[str, Array]
) -> dict[str, Any] | None:
    """LongRoPE; a factor on cos and sin that is what the lengths give is left out, as config.json does."""
    original, length = metadata.get(f"{architecture}.{_LENGTH_KEY}"), config.get("max_position_embeddings")
    attention = plain(metadata.get(f"{architecture}.{_ATTENTION_KEY}", 1.0))  # llama.cpp's own default
    if not (type(original) is int and original > 1 and type(length) is int and length > 0 and _is_positive(attention)):
        return None
    found = {
        "rope_type": "longrope",
        "short_factor": [shortest_f32(float(item)) for item in tables[ROPE_SHORT]],
        "long_factor": [shortest_f32(float(item)) for item in tables[ROPE_LONG]],
        ORIGINAL_LENGTH: original,
    }
    usual = np.float32(implied_attention(None, original, length))
    return found if np.float32(attention) == usual else {**found, "attention_factor": attention}


def keys_of_tables(architecture: str, scaling: object) -> frozenset[str]:
    """The keys that were read with the tables of a scaling."""
    kind = scaling.get("rope_type") if isinstance(scaling, Mapping) else None
    return frozenset({f"{architecture}.{_LENGTH_KEY}", f"{architecture}.{_ATTENTION_KEY}"} if kind == "longrope" else ())


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf

"""A config of some ten thousand parameters with the proportions of a real one: heads, widths, the pattern of the layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from apr_train.errors import ConfigError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.rope_scaling import LinearScaling, LongRopeScaling

VOCABULARY, POSITIONS, WINDOW, HIDDEN = 1024, 512, 32, 64
HEAD_DIMS = (16, 32, 64)
MOST_LAYERS, LONGEST_PERIOD = 12, 64


def tiny_of(config: DecoderConfig) -> DecoderConfig:
    """The config in small.

    Raises:
        ConfigError: when no width of a head that is tried gives one that can be.
    """
    faults: list[ConfigError] = []
    for width in HEAD_DIMS:
        try:
            return _shrunk(config, width)
        except ConfigError as error:  # a rotated share of so few dimensions is odd
            faults.append(error)
    raise faults[0]


def period(items: Sequence[Any] | None) -> int:
    """The length of the shortest beginning that the whole repeats; of a list that repeats nothing short its own length."""
    items = items or ()
    steps = range(1, min(len(items), LONGEST_PERIOD + 1))
    fits = (step for step in steps if all(item == items[place % step] for place, item in enumerate(items)))
    return next(fits, max(1, len(items)))


def _shrunk(config: DecoderConfig, head_dim: int) -> DecoderConfig:
    query, pairs = _heads(config.num_attention_heads // config.num_key_value_heads)
    plain = config.num_attention_heads * config.head_dim == config.hidden_size
    hidden = query * head_dim if plain else HIDDEN
    layers = _layers(config)
    ratio, share = hidden / config.hidden_size, head_dim / config.head_dim
    scale, scalar = config.attention_multiplier, config.query_pre_attn_scalar
    return attrs.evolve(
        config,
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=query,
        num_key_value_heads=pairs,
        head_dim=head_dim,
        intermediate_size=_width(config.intermediate_size, ratio),
        max_position_embeddings=POSITIONS,
        rope_scaling=_scaling(config, head_dim),
        sliding_window=None if config.sliding_window is None else WINDOW,
        layer_types=_cut(config.layer_types, layers),
        no_rope_layers=_cut(config.no_rope_layers, layers),
        attention_multiplier=None if scale is None else round(scale / share, 6),
        query_pre_attn_scalar=None if scalar is None else _like(scalar, scalar * share),
        num_experts=min(4, config.num_experts),
        num_experts_per_tok=min(2, config.num_experts_per_tok),
        moe_intermediate_size=_width(config.moe_intermediate_size, ratio) if config.moe_intermediate_size else None,
        shared_expert_intermediate_size=_width(size, ratio) if (size := config.shared_expert_intermediate_size) else 0,
        mlp_only_layers=tuple(layer for layer in config.mlp_only_layers if layer < layers),
    )


def _heads(group: int) -> tuple[int, int]:
    """Query heads, and heads of k and v, with so many of the first for one of the second (8 at most)."""
    pairs = {1: 4, 2: 2, 3: 2}.get(group, 1)
    return min(group, 8) * pairs, pairs


def _like(number: float, value: float) -> float:
    """The value, as a whole number where the other is one and it can be."""
    return int(value) if isinstance(number, int) and value == int(value) else round(value, 6)


def _width(size: int, ratio: float) -> int:
    return max(16, min(512, 16 * round(size * ratio / 16)))


def _layers(config: DecoderConfig) -> int:
    """At least two, and one period of every pattern if that is not long."""
    sparse = config.decoder_sparse_step if config.num_experts else 1
    lengths = (period(config.layer_types), period(config.no_rope_layers), sparse)
    return max(2, math.lcm(*(length if length <= MOST_LAYERS else 1 for length in lengths)))


def _cut(items: Sequence[Any] | None, layers: int) -> tuple[Any, ...] | None:
    """One item a layer: the beginning of a pattern, or items from the whole length of what has none."""
    if items is None:
        return None
    if period(items) <= layers:
        return tuple(items[layer % period(items)] for layer in range(layers))
    return tuple(items[layer * (len(items) - 1) // (layers - 1)] for layer in range(layers))


def _scaling(config: DecoderConfig, head_dim: int) -> Any:
    scaling = config.rope_scaling
    if scaling is None or isinstance(scaling, LinearScaling):
        return scaling
    length = scaling.original_max_position_embeddings * POSITIONS // config.max_position_embeddings
    changes: dict[str, Any] = {"original_max_position_embeddings": max(16, length)}
    if isinstance(scaling, LongRopeScaling):
        wanted = int(head_dim * config.partial_rotary_factor) // 2
        for name in ("short_factor", "long_factor"):
            numbers = getattr(scaling, name)
            changes[name] = tuple(numbers[place * len(numbers) // wanted] for place in range(wanted))
    return attrs.evolve(scaling, **changes)

"""Which layers slide and which rotate, from the several ways in which a config.json says it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from apr_train.checkpoint.companions import CONFIG
from apr_train.checkpoint.header import Header
from apr_train.family.card import FamilyInfo
from apr_train.family.validate import MOST_LAYERS

LayerType = Literal["full_attention", "sliding_attention"]
LAYER_TYPES: tuple[LayerType, ...] = ("full_attention", "sliding_attention")
WINDOW_FIELDS = frozenset({"sliding_window", "layer_types"})
SWITCH = "use_sliding_window"
WINDOW_SWITCHES = frozenset({SWITCH, "sliding_window", "max_window_layers"})
"""Keys by which Hugging Face's classes turn a window off that the file mentions."""


def reads_windows(info: FamilyInfo | None) -> bool:
    """Whether files of the family decide a sliding window."""
    return info is not None and bool(info.layer_pattern or WINDOW_FIELDS & set(info.config_keys))


def with_absent(header: Header, info: FamilyInfo | None) -> dict[str, Any]:
    """The file's keys, and what Hugging Face's class takes for those that are absent; a null is not absent, it means none.

    A GGUF has no switch for a window: one that it has is used.
    """
    absent = {} if info is None else info.absent_keys
    if header.names == "gguf":
        absent = {key: value for key, value in absent.items() if key not in WINDOW_SWITCHES}
    nulls = null_keys(header)
    return {**{key: value for key, value in absent.items() if key not in nulls}, **header.config}


def null_keys(header: Header) -> set[str]:
    """The keys that are null in the file's config.json."""
    return {key for key, value in header.companions.get(CONFIG, {}).items() if value is None}


def layer_types(config: Mapping[str, Any], layers: Any, info: FamilyInfo) -> Any:
    """The types that the file lists, or those that its other keys or the architecture make; None: every layer is full.

    Sources, in transformers: `layer_types` decides alone; `_sliding_window_pattern` of Gemma3TextConfig (every nth layer is
    full); `max_window_layers` of Qwen2Config (layer i slides when i >= that); else the card's pattern. A value that is no
    number of layers is left to the validators.
    """
    listed = config.get("layer_types")
    if listed is not None and "layer_types" in info.config_keys:
        return listed
    if not config.get("sliding_window") or config.get(SWITCH) is False or not _is_count(layers):
        return None
    every: Any = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
    first: Any = config.get("max_window_layers")
    if _is_count(every):
        return _types(bool((layer + 1) % every) for layer in range(layers))
    if config.get(SWITCH) is True and type(first) is int:
        return _types(layer >= first for layer in range(layers))
    pattern = info.layer_pattern
    return tuple(pattern[layer % len(pattern)] for layer in range(layers)) if pattern else None


def rotary_layers(config: Mapping[str, Any], layers: Any) -> Any:
    """`no_rope_layers` as listed, or one 0 in every `no_rope_layer_interval` (SmolLM3Config); None: all layers rotate."""
    every: Any = config.get("no_rope_layer_interval")
    if "no_rope_layers" in config or not _is_count(every) or not _is_count(layers):
        return config.get("no_rope_layers")
    return tuple(int((layer + 1) % every != 0) for layer in range(layers))


def _types(slides: Any) -> tuple[str, ...]:
    return tuple("sliding_attention" if slide else "full_attention" for slide in slides)


def _is_count(value: Any) -> bool:
    """Whether a list can be made of so many layers."""
    return type(value) is int and 0 < value <= MOST_LAYERS

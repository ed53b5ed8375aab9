"""Arguments of transformers' config class for a tiny model: the file's own keys, with the tiny preset's sizes in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from apr_train.artifact.new_family.draft import TINY, Draft
from apr_train.artifact.new_family.source import KEY_NAMES, Source
from apr_train.family.decoder_config import DecoderConfig
from apr_train.preflight.config_tables import DROPOUTS, HARMLESS

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,60}")
_VALUE = re.compile(r"[A-Za-z0-9_. +-]{0,60}")
_TOKENS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
_LEFT_OUT = frozenset({"architectures", "model_type", "auto_map", "quantization_config", "tie_word_embeddings"})
_SCALINGS = ("rope_scaling", "rope_parameters")
_KEPT = frozenset({"original_max_position_embeddings"})
"""Keys of the harmless ones that a scaling needs."""
MOST_KEYS, MOST_ITEMS, MOST = 120, 64, 1e18


def reference_arguments(draft: Draft, source: Source) -> dict[str, Any]:
    """Plain data with bounded sizes; keys and values that are no plain names or numbers are left out."""
    tiny, raw = draft.presets[TINY], source.raw
    fields = _fields(draft)
    found: dict[str, Any] = {}
    for key, value in raw.items():
        if (
            not _NAME.fullmatch(key)
            or key in _LEFT_OUT
            or (key in HARMLESS and key not in _KEPT | set(fields))
            or key in DROPOUTS
        ):
            continue
        made = _value(key, value, fields.get(key), tiny, source)
        if made is not _NOTHING and len(found) < MOST_KEYS:
            found[key] = made
    return {**found, "tie_word_embeddings": tiny.tie_word_embeddings, **_TOKENS}


_NOTHING = object()


def _fields(draft: Draft) -> dict[str, str]:
    """Key → the field of our config that it is."""
    found = {item.name: item.name for item in attrs.fields(DecoderConfig)}
    for name, keys in KEY_NAMES.items():
        found |= dict.fromkeys(keys, name)
    return found | {key: name for name, key in draft.config_names.items()}


def _value(key: str, value: Any, name: str | None, tiny: DecoderConfig, source: Source) -> Any:
    layers = source.value("num_hidden_layers")
    if key in _SCALINGS:
        return _rope(value, tiny)
    if key == "original_max_position_embeddings":
        return getattr(tiny.rope_scaling, key, tiny.max_position_embeddings)
    if key == "max_window_layers" and isinstance(value, int):
        return value * tiny.num_hidden_layers // layers
    if key == "rotary_dim" and isinstance(value, int):
        return tiny.rotary_dim
    if name is not None and value is not None and (isinstance(value, bool) or name not in _FLAGS):
        ours = tiny.stated(name)
        if ours is not None:
            return list(ours) if isinstance(ours, tuple) else ours
    if isinstance(value, list) and len(value) == layers:
        value = value[: tiny.num_hidden_layers]
    return _plain(value)


_FLAGS = frozenset({"attention_bias", "attention_output_bias", "mlp_bias", "lm_head_bias"})


def _rope(value: Any, tiny: DecoderConfig) -> Any:
    """A table of rotary numbers with the tiny preset's in it."""
    if not isinstance(value, Mapping):
        return _plain(value)
    if any(isinstance(item, Mapping) for item in value.values()):
        return _plain(value)
    own = {} if tiny.rope_scaling is None else attrs.asdict(tiny.rope_scaling)
    own |= {"rope_theta": tiny.rope_theta, "partial_rotary_factor": tiny.partial_rotary_factor}
    changed = {key: own[key] for key in value if key in own and own[key] is not None}
    changed = {key: list(item) if isinstance(item, tuple) else item for key, item in changed.items()}
    return _plain({**value, **changed})


def _plain(value: Any, depth: int = 3) -> Any:
    """The value if it is plain and small, and else nothing."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if abs(value) < MOST else _NOTHING  # not-a-number is not less either
    if isinstance(value, str):
        return value if _VALUE.fullmatch(value) else _NOTHING
    if depth == 0 or not isinstance(value, list | Mapping) or len(value) > MOST_ITEMS:
        return _NOTHING
    if isinstance(value, list):
        items = [_plain(item, depth - 1) for item in value]
        return _NOTHING if _NOTHING in items else items
    table = {key: _plain(item, depth - 1) for key, item in value.items() if _NAME.fullmatch(key)}
    return {key: item for key, item in table.items() if item is not _NOTHING}

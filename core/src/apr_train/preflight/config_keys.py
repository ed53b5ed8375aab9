"""Config keys that change a model's mathematics: the value at which each of them does nothing.

A key that a family's config has as a field is implemented there and must arrive unchanged. Every other key that is known
to change the mathematics must be at its neutral value, else the file asks for something that the trainer would leave out.
Keys that are known to change nothing are listed too; what is in neither list is told to the user. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from apr_train import rules
from apr_train.checkpoint.header import Header, Kind, kind_of
from apr_train.errors import Finding
from apr_train.family.card import FamilyInfo
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.family.rope_scaling import is_neutral_rope
from apr_train.preflight.config_tables import (
    ACTIVATIONS,
    BY_KIND,
    DROPOUTS,
    EXPERT_COUNTS,
    EXPERT_SIZES,
    GGUF_HARMLESS,
    GGUF_NEUTRAL,
    HARMLESS,
    NEUTRAL,
    OFF,
    ONE,
    SPECIAL_KEYS,
)


def config_key_findings(header: Header, config: ModelConfig | None, info: FamilyInfo | None = None) -> list[Finding]:
    """Judge every key of the file's metadata against what the config implements.

    Without a config (it could not be built) the core's own configs stand for what is implemented; without a family's
    card an absent key means nothing, and the tensors tell the kind.
    """
    kind = kind_of(header) if info is None else info.kind
    absent = {} if info is None or header.names == "gguf" else info.absent_keys
    findings = [*_windows(header, absent), *_rope_scaling(header, config), *_scales(header), *_activations(header, config)]
    unknown: list[str] = []
    for key, value in header.config.items():
        if value is None or key in SPECIAL_KEYS or key == "tie_word_embeddings" or _private(key):
            continue
        findings += _judge(header, config, kind, key, value, unknown)
    for key, value in header.further.items():
        findings += _judge_further(header, config, kind, key, value, unknown)
    return findings + ([_unknown(header, unknown)] if unknown else [])


def _private(key: str) -> bool:
    """Bookkeeping of the library that wrote the file; a key of the tables is judged with its underscore, too."""
    return key.startswith("_") and key[1:] not in NEUTRAL


def _judge(
    header: Header, config: ModelConfig | None, kind: Kind | None, key: str, value: Any, unknown: list[str]
) -> list[Finding]:
    if key in _fields(config) or (config is not None and hasattr(config, key)):
        return _field(header, config, key, value)
    name = key.removeprefix("_")
    neutral = _of_kind(kind).get(name, NEUTRAL.get(name))
    if neutral is not None:
        return [] if value in neutral[0] else [_harmful(header, key, value, *neutral)]
    if key in EXPERT_SIZES:
        experts = any(header.config.get(count) not in OFF for count in EXPERT_COUNTS)
        return [_harmful(header, key, value, OFF, "a mixture of experts")] if experts and value not in OFF else []
    if key in DROPOUTS:
        return [] if value == 0 else [_dropout(header, key, value)]
    if key not in HARMLESS:
        unknown.append(key)
    return []


def _of_kind(kind: Kind | None) -> Mapping[str, tuple[tuple[Any, ...], str]]:
    return BY_KIND["decoder" if kind is None else kind]


def _judge_further(
    header: Header, config: ModelConfig | None, kind: Kind | None, key: str, value: Any, unknown: list[str]
) -> list[Finding]:
    """A key that the container has beside Hugging Face's, in its own spelling."""
    name = key.removeprefix(f"{header.architecture}.")
    neutral = _of_kind(kind).get(name, GGUF_NEUTRAL.get(name, NEUTRAL.get(name)))
    if name == "attention.value_length":
        neutral = ((_head_dim(header.config),), "values of another width than queries and keys")
    elif name == "embedding_length_out":
        neutral = ((0, header.config.get("hidden_size")), "an output of another width than the blocks")
    if name in _fields(config):
        return _field(header, config, name, value)
    if neutral is not None:
        return [] if value in neutral[0] else [_harmful(header, key, value, *neutral)]
    if name not in GGUF_HARMLESS:
        unknown.append(key)
    return []


def _fields(config: ModelConfig | None) -> set[str]:
    classes: tuple[type[ModelConfig], ...] = (DecoderConfig, EncoderConfig) if config is None else (type(config),)
    return {item.name for cls in classes for item in attrs.fields(cls)}


def _field(header: Header, config: ModelConfig | None, key: str, value: Any) -> list[Finding]:
    """A field that the family fixes itself must not contradict the file."""
    if config is None or getattr(config, key) == value:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_003,
            subject=header.path,
            field=key,
            problem="the family does not implement this value",
            expected=repr(getattr(config, key)),
            found=repr(value),
            hint="The file belongs to another architecture or variant.",
        )
    ]


def _harmful(header: Header, key: str, value: Any, values: tuple[Any, ...], meaning: str) -> Finding:
    off = ["False" if isinstance(value, bool) else "0"] if 0 in values else []
    neutral = " or ".join([*off, *(repr(item) for item in values if item is not None and item != 0)])
    return Finding(
        rule=rules.PREFLIGHT_003,
        subject=header.path,
        field=key,
        problem=f"the file asks for {meaning}, which the family does not implement",
        expected=f"{neutral} or no such key" if neutral else "no such key",
        found=_short(value),
        hint="Trained without it, the model would be another one than the file's.",
    )


def _dropout(header: Header, key: str, value: Any) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_003,
        subject=header.path,
        field=key,
        problem="this dropout is not implemented and is not applied",
        expected="0.0",
        found=_short(value),
        severity="warning",
    )


def _unknown(header: Header, keys: list[str]) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_004,
        subject=header.path,
        field="config",
        problem="keys that nobody here knows: they are ignored",
        expected="only known keys",
        found=", ".join(sorted(keys)),
        hint="Make sure that none of them changes the mathematics.",
        severity="warning",
    )


def _windows(header: Header, absent: Mapping[str, Any]) -> list[Finding]:
    """Sliding windows: off by flag (which a family's card may set where the file has none), absent, or above the last layer.

    Source: the `__post_init__` of transformers' configs with `max_window_layers` (layer i slides when i >= that);
    `layer_types` decides alone where it is given.
    """
    config = {**absent, **header.config}
    kinds = {str(item) for item in _items(config.get("layer_types"))}
    findings = []
    if kinds - {"full_attention"}:
        meaning = "attention that differs between layers"
        findings.append(_harmful(header, "layer_types", sorted(kinds), ("full_attention",), meaning))
    elif not kinds and _window_slides(config):
        meaning = "a sliding attention window"
        findings.append(_harmful(header, "sliding_window", config["sliding_window"], (), meaning))
    elif pattern := config.get("sliding_window_pattern", config.get("_sliding_window_pattern")):
        findings.append(_harmful(header, "sliding_window_pattern", pattern, (), "attention that differs between layers"))
    return findings


def _items(value: Any) -> tuple[Any, ...]:
    """A list's items; anything else is one item, so that a malformed value is judged and not iterated."""
    return tuple(value) if isinstance(value, list | tuple) else (() if value is None else (value,))


def _window_slides(config: Mapping[str, Any]) -> bool:
    if not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return False
    layers, first = config.get("num_hidden_layers"), config.get("max_window_layers")
    return not (isinstance(layers, int) and isinstance(first, int) and first >= layers)


def _rope_scaling(header: Header, config: ModelConfig | None) -> list[Finding]:
    """Only a scaling that the config took over is implemented."""
    value = header.config.get("rope_scaling")
    if not value:
        return []
    kind = value.get("rope_type", value.get("type", "default")) if isinstance(value, Mapping) else value
    partial = value.get("partial_rotary_factor", 1) if isinstance(value, Mapping) else 1
    findings = []
    if partial != 1:
        meaning = "rotary embedding of a part of each head"
        findings.append(_harmful(header, "rope_scaling.partial_rotary_factor", partial, ONE, meaning))
    taken = kind == "llama3" if config is None else getattr(config, "rope_scaling", None) is not None
    if kind != "default" and not taken and not is_neutral_rope(value):
        findings.append(_harmful(header, "rope_scaling", kind, ("llama3", "default"), "a RoPE scaling"))
    return findings


def _scales(header: Header) -> list[Finding]:
    """Attention scales that are neutral only at 1/sqrt(head_dim), and layers without rotary positions."""
    config = header.config
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "attention_multiplier": (lambda value: _close(value, _head_dim(config) ** -0.5), "another attention scale"),
        "query_pre_attn_scalar": (lambda value: _close(value, _head_dim(config)), "another attention scale"),
        "rotary_dim": (lambda value: _close(value, _head_dim(config)), "rotary embedding of a part of each head"),
        "v_head_dim": (lambda value: _close(value, _head_dim(config)), "values of another width than queries and keys"),
        "embedding_size": (lambda value: value == config.get("hidden_size"), "embeddings of another width than the blocks"),
        "no_rope_layer_interval": (lambda value: "no_rope_layers" in config, "layers without rotary positions"),
        "no_rope_layers": (lambda value: all(item == 1 for item in _items(value)), "layers without rotary positions"),
    }
    return [
        _harmful(header, key, config[key], (), meaning)
        for key, (neutral, meaning) in checks.items()
        if config.get(key) and not neutral(config[key])
    ]


def _activations(header: Header, config: ModelConfig | None) -> list[Finding]:
    """Other spellings of hidden_act; without a config, as the file itself says it."""
    act = header.config.get("hidden_act", "silu") if config is None else config.hidden_act
    neutral = ("silu", "swish") if act == "silu" else (act,)
    keys = [key for key in sorted(ACTIVATIONS) if header.config.get(key) is not None]
    return [
        _harmful(header, key, header.config[key], neutral, "another activation")
        for key in keys
        if header.config[key] not in neutral
    ]


def _head_dim(config: Mapping[str, Any]) -> float:
    value = config.get("head_dim")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(value, int) and value > 0:
        return float(value)
    return hidden / heads if isinstance(hidden, int) and isinstance(heads, int) and hidden > 0 and heads > 0 else 1.0


def _close(value: Any, target: float) -> bool:
    return isinstance(value, int | float) and abs(value - target) <= 1e-6 * target


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

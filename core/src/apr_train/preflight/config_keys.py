"""Config keys that change a model's mathematics: the value at which each of them does nothing.

A key of a field that the family reads, or decides itself, must arrive unchanged. Every other key that is known to change the
mathematics must be at its neutral value, else the file asks for something that the trainer would leave out. Keys that are
known to change nothing are listed too; what is in neither list is told to the user. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.header import Header, Kind, kind_of
from apr_train.errors import Finding
from apr_train.family.card import FamilyInfo
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.family.layer_patterns import reads_windows, with_absent
from apr_train.family.reading import AUX_LOSS, AUX_SWITCH, QUIET
from apr_train.family.rope_scaling import KINDS, OLDER_NAMES, is_neutral_rope
from apr_train.preflight.config_tables import (
    ACTIVATIONS,
    BY_KIND,
    DROPOUTS,
    EXPERT_COUNTS,
    EXPERTS,
    GGUF_HARMLESS,
    GGUF_NEUTRAL,
    HARMLESS,
    NEUTRAL,
    OFF,
    ONE,
    RENAMED,
    SAME_ACTIVATION,
    SPECIAL_KEYS,
)

Neutral = tuple[tuple[Any, ...], str]
"""The values at which a key does nothing, and what any other value asks for."""


@frozen(kw_only=True)
class _Case:
    """A file's metadata, and what it is judged against."""

    header: Header
    config: ModelConfig | None
    kind: Kind | None
    info: FamilyInfo | None
    fields: Mapping[str, tuple[str, ...]]
    """Key → the config's fields that it must agree with."""
    quiet: Mapping[str, Any]
    """The fields that the family does not read → the value that they have in a model that no file mentions them of."""
    experts: bool
    """Whether the file asks for a mixture of experts."""


def config_key_findings(header: Header, config: ModelConfig | None, info: FamilyInfo | None = None) -> list[Finding]:
    """Judge every key of the file's metadata against what the config implements.

    Without a config (it could not be built) the core's own configs stand for what is implemented; without a family's
    card an absent key means nothing, and the tensors tell the kind.
    """
    findings, unknown = _judged(_case(header, config, info))
    return findings + ([_unknown(header, unknown)] if unknown else [])


def unknown_keys(header: Header, config: ModelConfig | None, info: FamilyInfo | None = None) -> list[str]:
    """The keys of the file's metadata that are in no table, as the file spells them."""
    return _judged(_case(header, config, info))[1]


def _judged(case: _Case) -> tuple[list[Finding], list[str]]:
    """The findings of all keys, and the keys that nobody knows."""
    header, config = case.header, case.config
    findings = [
        *_windows(case),
        *_rope_scaling(header, config),
        *_special_fields(case),
        *_scales(case),
        *_activations(header, config),
        *_router_loss(case),
    ]
    unknown: list[str] = []
    for key, value in header.config.items():
        if value is not None and key not in SPECIAL_KEYS and key != "tie_word_embeddings" and not _private(key):
            findings += _judge(case, key, key.removeprefix("_"), value, unknown)
    for key, value in header.further.items():
        findings += _judge(case, key, key.removeprefix(f"{header.architecture}."), value, unknown, further=True)
    return findings, unknown


def _case(header: Header, config: ModelConfig | None, info: FamilyInfo | None) -> _Case:
    kind = kind_of(header) if info is None else info.kind
    experts = any(header.config.get(count) not in OFF for count in EXPERT_COUNTS)
    fields: dict[str, tuple[str, ...]] = {}
    quiet = {}
    for item in (item for cls in _classes(config, kind) for item in attrs.fields(cls)):
        if not _is_read(item, config, info, experts):
            quiet[item.name] = item.default
            continue
        key = item.name if info is None else info.config_names.get(item.name, item.name)
        for spelling in {item.name, key}:
            fields[spelling] = (*fields.get(spelling, ()), item.name)
    return _Case(header=header, config=config, kind=kind, info=info, fields=fields, quiet=quiet, experts=experts)


def _classes(config: ModelConfig | None, kind: Kind | None) -> tuple[type[ModelConfig], ...]:
    if config is not None:
        return (type(config),)
    return {"decoder": (DecoderConfig,), "encoder": (EncoderConfig,), None: (DecoderConfig, EncoderConfig)}[kind]


def _is_read(item: Any, config: ModelConfig | None, info: FamilyInfo | None, experts: bool) -> bool:
    """Whether a file's key must agree with the field: it is read, decided by the family, or set to what only the family knows.

    Where there are experts, the config has a value of everything that says how they are used, whoever set it.
    """
    if not item.metadata.get(QUIET):
        return True
    if info is not None and (item.name in info.config_keys or item.name in info.fixed):
        return True
    if config is None:
        return False
    used = experts and item.name in EXPERTS and getattr(config, "num_experts", 0) not in OFF
    return used or bool(getattr(config, item.name) != item.default)


def _private(key: str) -> bool:
    """Bookkeeping of the library that wrote the file; a key of the tables is judged with its underscore, too."""
    return key.startswith("_") and key[1:] not in NEUTRAL


def _judge(case: _Case, key: str, name: str, value: Any, unknown: list[str], *, further: bool = False) -> list[Finding]:
    """One key; `name` is what the tables have it under, and `further` whether it has the container's own spelling."""
    header, config = case.header, case.config
    if config is not None and name in {*config.REQUIRED} - {*config.required(config.to_dict())}:
        return []  # the epsilon of the other kind of norm, a rotary base of learned positions: nothing reads it
    if name in case.fields and (further or name == key):
        return [fault for field in case.fields[name] for fault in _field(header, config, key, field, value)]
    if config is not None and isinstance(getattr(type(config), key, None), property):
        return _field(header, config, key, key, value)
    neutral = _neutral(case, name, further=further)
    if neutral is not None:
        return [] if value in neutral[0] else [_harmful(header, key, value, *neutral, hint=_way(case, name))]
    if name in DROPOUTS:
        return [] if value == 0 else [_dropout(header, key, value)]
    if name not in (GGUF_HARMLESS if further else HARMLESS) and name not in EXPERTS:
        unknown.append(key)
    return []


def _neutral(case: _Case, name: str, *, further: bool) -> Neutral | None:
    """Where a key does nothing; None of one that is in no table, or that means nothing without experts."""
    sizes: dict[str, Neutral] = {
        "attention.value_length": ((_head_dim(case.header.config),), "values of another width than queries and keys"),
        "embedding_length_out": ((0, case.header.config.get("hidden_size")), "an output of another width than the blocks"),
    }
    tables = [BY_KIND["decoder" if case.kind is None else case.kind]]
    tables += [sizes, GGUF_NEUTRAL] if further else []
    tables += [EXPERTS] if case.experts else []
    found = next((table[name] for table in (*tables, NEUTRAL) if name in table), None)
    if found is None and name in case.quiet and name not in HARMLESS and name not in EXPERTS:
        default = case.quiet[name]
        return (default, list(default)) if isinstance(default, tuple) else (default,), f"another {name}"
    return found


def _field(header: Header, config: ModelConfig | None, key: str, name: str, value: Any) -> list[Finding]:
    """A field that the family fixes itself must not contradict the file."""
    if config is None or _same(getattr(config, name), value) or _same(config.stated(name), value):
        return []
    if name in config.meaningless(config.to_dict()):
        return []  # how many experts a token goes to, where there are none
    return [
        Finding(
            rule=rules.PREFLIGHT_003,
            subject=header.path,
            field=key,
            problem="the family does not implement this value",
            expected=_short(_plain(getattr(config, name))),
            found=_short(value),
            hint="The file belongs to another architecture or variant.",
        )
    ]


def _same(ours: Any, theirs: Any) -> bool:
    names = {ours, theirs} if isinstance(ours, str) and isinstance(theirs, str) else set()
    return bool(_plain(ours) == _plain(theirs)) or any(names <= group for group in SAME_ACTIVATION if names)


def _plain(value: Any) -> Any:
    """A tuple as the list that JSON has."""
    return list(value) if isinstance(value, tuple) else value


LOST = "Trained without it, the model would be another one than the file's."


def _way(case: _Case, name: str) -> str:
    """What to do about a key that the family leaves out: where the core knows it, a line on a card is enough."""
    field = name if name in case.quiet else RENAMED.get(name)
    if field is None:
        return LOST
    part = f'FAMILY.config_names["{field}"] = "{name}"' if name in RENAMED else "FAMILY.config_keys, or FAMILY.fixed"
    return f"{LOST} The core computes it for a family that names it in {part}."


def _harmful(header: Header, key: str, value: Any, values: tuple[Any, ...], meaning: str, *, hint: str = LOST) -> Finding:
    off = ["False" if isinstance(value, bool) else "0"] if 0 in values else []
    neutral = " or ".join([*off, *(repr(item) for item in values if item is not None and item != 0)])
    return Finding(
        rule=rules.PREFLIGHT_003,
        subject=header.path,
        field=key,
        problem=f"the file asks for {meaning}, which the family does not implement",
        expected=f"{neutral} or no such key" if neutral else "no such key",
        found=_short(value),
        hint=hint,
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


def _windows(case: _Case) -> list[Finding]:
    """Sliding windows of a family that does not read them: off by flag (which a family's card may set where the file has none),
    absent, or above the last layer; of a family that reads them, a window that nothing says the layers of.

    Source: the `__post_init__` of transformers' configs with `max_window_layers` (layer i slides when i >= that);
    `layer_types` decides alone where it is given.
    """
    header, config = case.header, with_absent(case.header, case.info)
    kinds = {str(item) for item in _items(config.get("layer_types"))}
    differ, window = "attention that differs between layers", "a sliding attention window"
    if reads_windows(case.info):
        return _read_windows(case, config, kinds, window)
    if kinds - {"full_attention"}:
        return [_harmful(header, "layer_types", sorted(kinds), ("full_attention",), differ)]
    if not kinds and _window_slides(config):
        return [_harmful(header, "sliding_window", config["sliding_window"], (), window)]
    if pattern := config.get("sliding_window_pattern", config.get("_sliding_window_pattern")):
        return [_harmful(header, "sliding_window_pattern", pattern, (), differ)]
    return []


def _read_windows(case: _Case, config: Mapping[str, Any], kinds: set[str], window: str) -> list[Finding]:
    found, slides = case.config, _window_slides(config)
    if found is None:
        return []
    listed = "layer_types" in case.header.config and (kinds - {"full_attention"} or slides)
    if listed and (faults := _field(case.header, found, "layer_types", "layer_types", config["layer_types"])):
        return faults
    if slides and not kinds and getattr(found, "layer_types", None) is None:
        return [_harmful(case.header, "sliding_window", config["sliding_window"], (), window)]
    used = getattr(found, "sliding_window", None)
    return _field(case.header, found, "sliding_window", "sliding_window", config["sliding_window"]) if used and slides else []


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
    known = isinstance(kind, str) and OLDER_NAMES.get(kind, kind) in KINDS
    taken = known if config is None else getattr(config, "rope_scaling", None) is not None
    if kind != "default" and not taken and not is_neutral_rope(value):
        findings.append(_harmful(header, "rope_scaling", kind, (*KINDS, "default"), "a RoPE scaling"))
    return findings


def _special_fields(case: _Case) -> list[Finding]:
    """Fields whose neutral value depends on other keys, of a family that reads them: as every field, they must agree."""
    names = ("rope_local_base_freq", "attention_multiplier", "query_pre_attn_scalar", "no_rope_layers")
    given = [name for name in names if name in case.fields and case.header.config.get(name) is not None]
    return [fault for name in given for fault in _field(case.header, case.config, name, name, case.header.config[name])]


def _scales(case: _Case) -> list[Finding]:
    """Attention scales that are neutral only at 1/sqrt(head_dim), layers without rotary positions, a second rotary base."""
    header, config = case.header, case.header.config
    rotary = getattr(case.config, "rotary_dim", None) or _head_dim(config)
    one_base = config.get("rope_theta") if not config.get("rope_scaling") else None
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "attention_multiplier": (lambda value: _close(value, _head_dim(config) ** -0.5), "another attention scale"),
        "query_pre_attn_scalar": (lambda value: _close(value, _head_dim(config)), "another attention scale"),
        "rotary_dim": (lambda value: _close(value, rotary), "rotary embedding of a part of each head"),
        "v_head_dim": (lambda value: _close(value, _head_dim(config)), "values of another width than queries and keys"),
        "embedding_size": (lambda value: value == config.get("hidden_size"), "embeddings of another width than the blocks"),
        "no_rope_layer_interval": (lambda value: "no_rope_layers" in config, "layers without rotary positions"),
        "no_rope_layers": (lambda value: all(item == 1 for item in _items(value)), "layers without rotary positions"),
        "rope_local_base_freq": (lambda value: value == one_base, "a second rotary base for local layers"),
    }
    read = {*case.fields, *({"no_rope_layer_interval"} if "no_rope_layers" in case.fields else ())}
    return [
        _harmful(header, key, config[key], (), meaning)
        for key, (neutral, meaning) in checks.items()
        if not _is_off(config.get(key)) and key not in read and not neutral(config[key])
    ]


def _activations(header: Header, config: ModelConfig | None) -> list[Finding]:
    """Other spellings of hidden_act; without a config, as the file itself says it."""
    act = header.config.get("hidden_act", "silu") if config is None else config.hidden_act
    keys = [key for key in sorted(ACTIVATIONS) if header.config.get(key) is not None]
    return [
        _harmful(header, key, header.config[key], (act,), "another activation")
        for key in keys
        if not _same(act, header.config[key])
    ]


def _router_loss(case: _Case) -> list[Finding]:
    """The loss of a router: its factor counts where `output_router_logits` is true, as in transformers, and else is told of."""
    header, config = case.header, case.config
    asked, switched = header.config.get(AUX_LOSS), header.config.get(AUX_SWITCH)
    if not case.experts or not asked or config is None:
        return []
    if switched:
        used = getattr(config, AUX_LOSS, 0.0)
        return [] if _same(used, asked) else [_harmful(header, AUX_LOSS, asked, (used,), "a loss of the router")]
    if getattr(config, AUX_LOSS, 0.0):
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_022,
            subject=header.path,
            field=AUX_LOSS,
            problem=f"{AUX_SWITCH} is not true, so the router's loss is measured and not added, as in transformers",
            expected=f"{AUX_SWITCH}: true, if it shall be added",
            found=f"{AUX_LOSS} {asked!r}, read as 0",
            severity="warning",
        )
    ]


def _head_dim(config: Mapping[str, Any]) -> float:
    value = config.get("head_dim")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(value, int) and value > 0:
        return float(value)
    return hidden / heads if isinstance(hidden, int) and isinstance(heads, int) and hidden > 0 and heads > 0 else 1.0


def _close(value: Any, target: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value - target) <= 1e-6 * target


def _is_off(value: Any) -> bool:
    """Whether a number is absent or zero; another type's false is a value that cannot be."""
    return value is None or (type(value) in (int, float) and value == 0)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

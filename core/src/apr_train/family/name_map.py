"""The declarative map between a checkpoint's tensor names and a model's parameters, read both ways.

A family writes a short table of rules with `{layer}` in the names and symbolic shapes; `NameMap` expands it for one
config and checks it while doing so. `apr_train.family.load_plan` matches it against a real file. Torch-free.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import attrs
from attrs import field, frozen

from apr_train.errors import NameMapError
from apr_train.family.config import ModelConfig
from apr_train.family.operations import Operation, Rename, RopeRowPermutation
from apr_train.suggest import did_you_mean

Shape = tuple[str, ...]
"""Symbolic sizes: config fields, or products of them: `("num_attention_heads*head_dim", "hidden_size")`."""
Kind = Literal["rename", "rope-rows", "tie", "ignored"]


@frozen(kw_only=True)
class Rule:
    """One line of the table; make it with `rename`, `rope_rows`, `tie` or `ignored`."""

    kind: Kind
    checkpoint: str
    """Name template in the file."""
    parameter: str | None = None
    """Name template in the model; None for ignored tensors."""
    shape: Shape = ()
    heads: str | None = None
    """For rope-rows: the config field that counts the heads in this tensor."""
    fresh_group: str | None = None
    """Tensors of one group may all be absent from a file; then they are freshly initialised, and that is said."""
    reason: str = ""
    """For ignored: why the model does not need it."""


def rename(checkpoint: str, parameter: str, *shape: str, fresh_group: str | None = None) -> Rule:
    """The same values under another name."""
    return Rule(kind="rename", checkpoint=checkpoint, parameter=parameter, shape=shape, fresh_group=fresh_group)


def rope_rows(checkpoint: str, parameter: str, *shape: str, heads: str) -> Rule:
    """Rows of q or k that are in adjacent-pair order in the file."""
    return Rule(kind="rope-rows", checkpoint=checkpoint, parameter=parameter, shape=shape, heads=heads)


def tie(checkpoint: str, parameter: str, *shape: str) -> Rule:
    """A second name of a parameter that another rule fills; in a file it may be absent, or an exact copy."""
    return Rule(kind="tie", checkpoint=checkpoint, parameter=parameter, shape=shape)


def ignored(checkpoint: str, reason: str) -> Rule:
    """A tensor that files may hold and the model does not use; `reason` is told to the user."""
    return Rule(kind="ignored", checkpoint=checkpoint, reason=reason)


@frozen(kw_only=True)
class Entry:
    """A rule with the layer filled in and the shape in numbers."""

    kind: Kind
    checkpoint: str
    parameter: str | None
    shape: tuple[int, ...] | None
    """The same in the file and in the model; None for ignored tensors: any shape."""
    operation: Operation
    fresh_group: str | None = None
    reason: str = ""


def config_sizes(config: ModelConfig) -> dict[str, int]:
    """Every integer field and property of a config that a symbolic shape may name."""
    names = [item.name for item in attrs.fields(type(config))] + ["head_dim", "num_key_value_heads"]
    values = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)}


@frozen(kw_only=True)
class NameMap:
    """The expanded and checked table of one config.

    Raises:
        NameMapError: a template with a stray placeholder, an unknown size, a checkpoint name or a parameter
            twice, a tie to a parameter that nothing fills or of another shape, a row permutation whose period does not
            fit. All at once.
    """

    rules: tuple[Rule, ...]
    sizes: Mapping[str, int]
    """What the symbolic shapes refer to; see `config_sizes`."""
    num_layers: int
    entries: tuple[Entry, ...] = field(init=False, repr=False)
    by_checkpoint: Mapping[str, Entry] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        faults: list[str] = []
        entries = tuple(entry for rule in self.rules for entry in _expand(rule, self.sizes, self.num_layers, faults))
        faults += _clashes(entries)
        if faults:
            raise NameMapError("the name map is wrong: " + "; ".join(faults))
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "by_checkpoint", {entry.checkpoint: entry for entry in entries})

    @classmethod
    def for_config(cls, config: ModelConfig, rules: Iterable[Rule]) -> NameMap:
        """Expand `rules` with a config's sizes and layer count."""
        return cls(rules=tuple(rules), sizes=config_sizes(config), num_layers=config.num_hidden_layers)

    @property
    def fills(self) -> dict[str, Entry]:
        """Parameter name → the entry that fills it (ties left out: they fill nothing)."""
        return {cast(str, entry.parameter): entry for entry in self.entries if entry.kind in ("rename", "rope-rows")}

    def check_against(self, parameters: Mapping[str, tuple[int, ...]]) -> None:
        """Compare the map with a model's own parameter names and shapes (a meta-device model will do).

        Raises:
            NameMapError: listing every parameter without a rule, every rule without a parameter, every wrong shape.
        """
        fills = self.fills
        faults = [f"no rule fills {name} ({did_you_mean(name, fills)})" for name in parameters if name not in fills]
        faults += [
            f"{entry.checkpoint} goes to {name}, which the model does not have ({did_you_mean(name, parameters)})"
            for name, entry in fills.items()
            if name not in parameters
        ]
        faults += [
            f"{name}: the map says {list(entry.shape or ())}, the model has {list(parameters[name])}"
            for name, entry in fills.items()
            if name in parameters and entry.shape != tuple(parameters[name])
        ]
        if faults:
            raise NameMapError("the name map does not fit the model: " + "; ".join(faults))


def _expand(rule: Rule, sizes: Mapping[str, int], num_layers: int, faults: list[str]) -> list[Entry]:
    per_layer = "{layer}" in rule.checkpoint
    if rule.parameter is not None and per_layer != ("{layer}" in rule.parameter):
        faults.append(f"{rule.checkpoint} → {rule.parameter}: {{layer}} on one side only")
        return []
    if any(brace in name.replace("{layer}", "") for name in (rule.checkpoint, rule.parameter or "") for brace in "{}"):
        faults.append(f"{rule.checkpoint} → {rule.parameter}: {{layer}} is the only placeholder")
        return []
    try:
        shape = tuple(_size(symbol, sizes) for symbol in rule.shape) if rule.kind != "ignored" else None
        operation = _operation(rule, shape, sizes)
    except NameMapError as error:
        faults.append(f"{rule.checkpoint}: {error.finding.problem}")
        return []
    return [
        Entry(
            kind=rule.kind,
            checkpoint=rule.checkpoint.replace("{layer}", str(layer)),
            parameter=None if rule.parameter is None else rule.parameter.replace("{layer}", str(layer)),
            shape=shape,
            operation=operation,
            fresh_group=rule.fresh_group,
            reason=rule.reason,
        )
        for layer in range(num_layers if per_layer else 1)
    ]


def _size(symbol: str, sizes: Mapping[str, int]) -> int:
    """`a*b` → the product of the sizes named a and b."""
    names = symbol.split("*")
    for name in names:
        if name not in sizes:
            raise NameMapError(f"unknown size {name} ({did_you_mean(name, sizes)})")
    return math.prod(sizes[name] for name in names)


def _operation(rule: Rule, shape: tuple[int, ...] | None, sizes: Mapping[str, int]) -> Operation:
    if rule.kind != "rope-rows":
        return Rename()
    heads = _size(cast(str, rule.heads), sizes)
    head_dim = sizes.get("head_dim", 0)
    rows = shape[0] if shape else 0
    if head_dim % 2 or rows != heads * head_dim:
        raise NameMapError(f"row permutation of the wrong period: {rows} rows are not {heads} heads of {head_dim}")
    return RopeRowPermutation(heads)


def _clashes(entries: Iterable[Entry]) -> list[str]:
    entries = list(entries)
    sources = Counter(entry.checkpoint for entry in entries)
    filled = {entry.parameter: entry for entry in entries if entry.kind in ("rename", "rope-rows")}
    targets = Counter(entry.parameter for entry in entries if entry.kind in ("rename", "rope-rows"))
    faults = [f"{name} has {count} rules" for name, count in sources.items() if count > 1]
    faults += [f"{name} is filled by {count} rules" for name, count in targets.items() if count > 1]
    ties = [entry for entry in entries if entry.kind == "tie"]
    faults += [
        f"{tie.checkpoint} is tied to {tie.parameter}, which nothing fills" for tie in ties if tie.parameter not in filled
    ]
    return faults + [
        f"{tie.checkpoint} is tied to {tie.parameter} in another shape"
        for tie in ties
        if tie.parameter in filled and tie.shape != filled[tie.parameter].shape
    ]


def to_parameters(name_map: NameMap, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Rename and reorder a whole checkpoint's tensors into parameters; used by converters and tests."""
    return {
        name: entry.operation.to_parameter(tensors[entry.checkpoint])
        for name, entry in name_map.fills.items()
        if entry.checkpoint in tensors
    }


def to_checkpoint(name_map: NameMap, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The exact inverse of `to_parameters`; ties are not written."""
    return {
        entry.checkpoint: entry.operation.to_checkpoint(parameters[name])
        for name, entry in name_map.fills.items()
        if name in parameters
    }

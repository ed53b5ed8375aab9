"""The name map between a checkpoint's tensors and a model's parameters: declared once, read in both directions.

A family writes a short table of rules with `{layer}` in the names and symbolic shapes; `NameMap` expands the table for one
config and checks it while doing so. `apr_train.family.load_plan` matches the result against a real file. Torch-free.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import attrs
from attrs import field, frozen

from apr_train.errors import Finding, NameMapError
from apr_train.family.config import ModelConfig
from apr_train.suggest import did_you_mean


class Operation(Protocol):
    """A change of one tensor's values between file and model; the two directions are exact inverses."""

    def to_parameter(self, tensor: Any) -> Any:
        """Bring a tensor from the file's order into the model's; the shape stays."""
        ...

    def to_checkpoint(self, tensor: Any) -> Any:
        """Bring a tensor from the model's order into the file's; the shape stays."""
        ...


@frozen
class Identity:
    """No change: only the name differs."""

    def to_parameter(self, tensor: Any) -> Any:
        """Return the tensor as it is."""
        return tensor

    def to_checkpoint(self, tensor: Any) -> Any:
        """Return the tensor as it is."""
        return tensor


@frozen
class RopeRowPermutation:
    """Rows of q or k: adjacent pairs (GGUF's llama order) in the file, split halves in the model.

    Source: `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, and its inverse.
    """

    heads: int
    """Heads in this tensor: query heads for q, kv heads for k."""

    def to_parameter(self, tensor: Any) -> Any:
        """`[heads*head_dim, …]` with rows 2i, 2i+1 a pair → rows i, i + head_dim/2 a pair."""
        rows = tensor.shape[0]
        return tensor.reshape(self.heads, rows // self.heads // 2, 2, -1).swapaxes(1, 2).reshape(tensor.shape)

    def to_checkpoint(self, tensor: Any) -> Any:
        """The inverse of `to_parameter`."""
        rows = tensor.shape[0]
        return tensor.reshape(self.heads, 2, rows // self.heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


Shape = tuple[str, ...]
"""Symbolic sizes: config fields, or products of them: `("num_attention_heads*head_dim", "hidden_size")`."""


@frozen(kw_only=True)
class FillRule:
    """A tensor that fills a parameter; make it with `rename` or `rope_rows`."""

    checkpoint: str
    """Name template in the file."""
    parameter: str
    """Name template in the model."""
    shape: Shape
    heads: str | None = None
    """The config field that counts the heads whose rows are in adjacent pairs in the file; None: rows stay in order."""
    fresh_group: str | None = None
    """Tensors of one group may all be absent from a file; then they are freshly initialised, and the user is told."""


@frozen(kw_only=True)
class TieRule:
    """A second name of a parameter that another rule fills; make it with `tie`."""

    checkpoint: str
    parameter: str
    shape: Shape


@frozen(kw_only=True)
class IgnoreRule:
    """A tensor that the model does not use; make it with `ignored`."""

    checkpoint: str
    reason: str
    """Why the model does not need the tensor."""


Rule = FillRule | TieRule | IgnoreRule
"""One line of a family's table."""


def rename(checkpoint: str, parameter: str, *shape: str, fresh_group: str | None = None) -> Rule:
    """The same values under another name."""
    return FillRule(checkpoint=checkpoint, parameter=parameter, shape=shape, fresh_group=fresh_group)


def rope_rows(checkpoint: str, parameter: str, *shape: str, heads: str) -> Rule:
    """Rows of q or k that are in adjacent-pair order in the file; `heads` is the config field that counts the heads."""
    return FillRule(checkpoint=checkpoint, parameter=parameter, shape=shape, heads=heads)


def tie(checkpoint: str, parameter: str, *shape: str) -> Rule:
    """A second name of a parameter that another rule fills; in a file it may be absent, or an exact copy."""
    return TieRule(checkpoint=checkpoint, parameter=parameter, shape=shape)


def ignored(checkpoint: str, reason: str) -> Rule:
    """A tensor that files may hold and the model does not use; `reason` is told to the user."""
    return IgnoreRule(checkpoint=checkpoint, reason=reason)


@frozen(kw_only=True)
class Fill:
    """A `FillRule` for one layer, its shape in numbers."""

    checkpoint: str
    parameter: str
    shape: tuple[int, ...]
    """The same in the file and in the model."""
    operation: Operation
    fresh_group: str | None = None


@frozen(kw_only=True)
class Tied:
    """A `TieRule` for one layer, its shape in numbers."""

    checkpoint: str
    parameter: str
    shape: tuple[int, ...]


@frozen(kw_only=True)
class Ignored:
    """An `IgnoreRule` for one layer; a file may hold the tensor in any shape."""

    checkpoint: str
    reason: str


Entry = Fill | Tied | Ignored
"""One tensor that a file may hold."""


def config_sizes(config: ModelConfig) -> dict[str, int]:
    """Every integer field and property of a config that a symbolic shape may name."""
    names = [item.name for item in attrs.fields(type(config))] + ["head_dim", "num_key_value_heads"]
    values = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)}


@frozen(kw_only=True)
class NameMap:
    """The expanded and checked table of one config.

    Raises:
        NameMapError: with one finding per fault: a template with a stray placeholder, an unknown size, a checkpoint name
            or a parameter twice, a tie to a parameter that nothing fills or of another shape, a row permutation whose
            period does not fit.
    """

    rules: tuple[Rule, ...]
    sizes: Mapping[str, int]
    """What the symbolic shapes refer to; see `config_sizes`."""
    num_layers: int
    entries: tuple[Entry, ...] = field(init=False, repr=False)
    by_checkpoint: Mapping[str, Entry] = field(init=False, repr=False)
    fills: Mapping[str, Fill] = field(init=False, repr=False)
    """Parameter name → the entry that fills it; ties fill nothing."""

    def __attrs_post_init__(self) -> None:
        faults: list[str] = []
        entries: list[Entry] = []
        for rule in self.rules:
            try:
                entries += _expand(rule, self.sizes, self.num_layers)
            except NameMapError as error:
                faults.append(error.finding.problem)
        _refuse("the name map is wrong", [*faults, *_clashes(entries)])
        object.__setattr__(self, "entries", tuple(entries))
        object.__setattr__(self, "by_checkpoint", {entry.checkpoint: entry for entry in entries})
        object.__setattr__(self, "fills", {entry.parameter: entry for entry in entries if isinstance(entry, Fill)})

    @classmethod
    def for_config(cls, config: ModelConfig, rules: Iterable[Rule]) -> NameMap:
        """Expand `rules` with a config's sizes and layer count."""
        return cls(rules=tuple(rules), sizes=config_sizes(config), num_layers=config.num_hidden_layers)

    def check_against(self, parameters: Mapping[str, tuple[int, ...]]) -> None:
        """Compare the map with a model's own parameter names and shapes (a meta-device model will do).

        Raises:
            NameMapError: with one finding per parameter without a rule, rule without a parameter, and wrong shape.
        """
        fills = self.fills
        faults = [f"no rule fills {name} ({did_you_mean(name, fills)})" for name in parameters if name not in fills]
        faults += [
            f"{entry.checkpoint} goes to {name}, which the model does not have ({did_you_mean(name, parameters)})"
            for name, entry in fills.items()
            if name not in parameters
        ]
        faults += [
            f"{name}: the map says {list(entry.shape)}, the model has {list(parameters[name])}"
            for name, entry in fills.items()
            if name in parameters and entry.shape != tuple(parameters[name])
        ]
        _refuse("the name map does not fit the model", faults)


def _refuse(what: str, faults: list[str]) -> None:
    if faults:
        raise NameMapError.of(Finding(problem=f"{what}: {fault}") for fault in faults)


def _expand(rule: Rule, sizes: Mapping[str, int], num_layers: int) -> list[Entry]:
    """The rule's entries: one per layer when its names have `{layer}`, else one.

    Raises:
        NameMapError: a stray placeholder, an unknown size, or a row permutation whose period does not fit.
    """
    layers = range(num_layers if _is_per_layer(rule) else 1)
    if isinstance(rule, IgnoreRule):
        return [Ignored(checkpoint=_at(rule.checkpoint, layer), reason=rule.reason) for layer in layers]
    names = [(_at(rule.checkpoint, layer), _at(rule.parameter, layer)) for layer in layers]
    shape = tuple(_size(symbol, sizes, rule.checkpoint) for symbol in rule.shape)
    if isinstance(rule, TieRule):
        return [Tied(checkpoint=checkpoint, parameter=parameter, shape=shape) for checkpoint, parameter in names]
    operation, group = _operation(rule, shape, sizes), rule.fresh_group
    return [
        Fill(checkpoint=checkpoint, parameter=parameter, shape=shape, operation=operation, fresh_group=group)
        for checkpoint, parameter in names
    ]


def _is_per_layer(rule: Rule) -> bool:
    names = [rule.checkpoint] if isinstance(rule, IgnoreRule) else [rule.checkpoint, rule.parameter]
    per_layer = {"{layer}" in name for name in names}
    if len(per_layer) > 1:
        raise NameMapError(f"{' → '.join(names)}: {{layer}} on one side only")
    if any(brace in name.replace("{layer}", "") for name in names for brace in "{}"):
        raise NameMapError(f"{' → '.join(names)}: {{layer}} is the only placeholder")
    return per_layer == {True}


def _at(template: str, layer: int) -> str:
    return template.replace("{layer}", str(layer))


def _size(symbol: str, sizes: Mapping[str, int], checkpoint: str) -> int:
    """`a*b` → the product of the sizes named a and b."""
    names = symbol.split("*")
    for name in names:
        if name not in sizes:
            raise NameMapError(f"{checkpoint}: unknown size {name} ({did_you_mean(name, sizes)})")
    return math.prod(sizes[name] for name in names)


def _operation(rule: FillRule, shape: tuple[int, ...], sizes: Mapping[str, int]) -> Operation:
    if rule.heads is None:
        return Identity()
    heads = _size(rule.heads, sizes, rule.checkpoint)
    head_dim = sizes.get("head_dim", 0)
    rows = shape[0] if shape else 0
    if head_dim % 2 or rows != heads * head_dim:
        problem = f"row permutation of the wrong period: {rows} rows are not {heads} heads of {head_dim}"
        raise NameMapError(f"{rule.checkpoint}: {problem}")
    return RopeRowPermutation(heads)


def _clashes(entries: list[Entry]) -> list[str]:
    fills = [entry for entry in entries if isinstance(entry, Fill)]
    ties = [entry for entry in entries if isinstance(entry, Tied)]
    filled = {entry.parameter: entry for entry in fills}
    sources = Counter(entry.checkpoint for entry in entries)
    targets = Counter(entry.parameter for entry in fills)
    faults = [f"{name} has {count} rules" for name, count in sources.items() if count > 1]
    faults += [f"{name} is filled by {count} rules" for name, count in targets.items() if count > 1]
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

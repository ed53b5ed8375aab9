"""The name map between a checkpoint's tensors and a model's parameters: declared once, read in both directions.

A family writes a short table of rules with `{layer}` and `{expert}` in the names and symbolic shapes; `NameMap` expands the
table for one config and checks it while doing so. An entry is an edge between a part of a tensor of the file and a part of a
parameter: a fused matrix is several edges from one tensor, a stack of experts several edges into one parameter.
`apr_train.family.load_plan` matches the result against a real file. Torch-free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from apr_train import rules
from apr_train.errors import Finding, NameMapError, WrongMapError
from apr_train.family.config import ModelConfig
from apr_train.family.name_rules import EXPERT, EXPERTS, LAYER, FillRule, IgnoreRule, Part, Rule, Slot, TieRule
from apr_train.family.operations import Identity, Operation, Region, RopeRowPermutation, checkpoint_shape, joined, part_of
from apr_train.family.sizes import Shape, config_sizes, evaluate
from apr_train.suggest import did_you_mean


@frozen(kw_only=True)
class Fill:
    """A `FillRule` for one layer and one expert, in numbers: an edge from a part of a tensor to a part of a parameter."""

    checkpoint: str
    checkpoint_shape: tuple[int, ...]
    """Of the whole tensor in the file."""
    checkpoint_part: Region | None = None
    """The part of it that goes along this edge; None: all of it."""
    parameter: str
    parameter_shape: tuple[int, ...]
    """Of the whole parameter."""
    parameter_part: Region | None = None
    """The part of it that this edge fills; None: all of it."""
    piece: tuple[int, ...]
    """Shape of what this edge fills, as the model has it."""
    operation: Operation
    fresh_group: str | None = None

    @property
    def unchanged(self) -> bool:
        """Whether the tensor in the file and the parameter are the same numbers in the same shape."""
        return isinstance(self.operation, Identity) and self.checkpoint_part is None and self.parameter_part is None

    @property
    def checkpoint_piece(self) -> tuple[int, ...]:
        """Shape of what goes along this edge, as the file has it."""
        return tuple(checkpoint_shape(self.operation, self.piece))

    def to_parameter(self, tensor: Any) -> Any:
        """The piece of the parameter that comes from the file's whole tensor; a view where the operation allows."""
        return self.operation.to_parameter(part_of(tensor, self.checkpoint_part))

    def to_checkpoint(self, parameter: Any) -> Any:
        """The piece of the file's tensor that comes from the whole parameter; a view where the operation allows."""
        return self.operation.to_checkpoint(part_of(parameter, self.parameter_part))


@frozen(kw_only=True)
class Tied:
    """A `TieRule` for one layer, its shape in numbers."""

    checkpoint: str
    parameter: str
    shape: tuple[int, ...]

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """Of the tensor in the file."""
        return self.shape


@frozen(kw_only=True)
class Ignored:
    """An `IgnoreRule` for one layer; a file may hold the tensor in any shape."""

    checkpoint: str
    reason: str


MOST_TENSORS = 1 << 15
"""Bound on the tensors that one rule stands for; 60 layers of 384 experts, the most that are published, are 23,040."""

Entry = Fill | Tied | Ignored
"""One edge from a tensor that a file may hold, or the reason why there is none."""


@frozen(kw_only=True)
class NameMap:
    """The expanded and checked table of one config.

    Raises:
        WrongMapError: with one finding per fault: a template with a stray placeholder, an unknown size, two tensors for one
            place of a parameter or two parameters for one of a tensor (NAMES-002), a place that nothing fills (NAMES-003), a
            tie to a parameter that nothing fills or of another shape, a row permutation whose period does not fit.
    """

    rules: tuple[Rule, ...]
    sizes: Mapping[str, int]
    """What the symbolic shapes refer to; see `config_sizes`."""
    num_layers: int
    entries: tuple[Entry, ...] = field(init=False, repr=False)
    by_checkpoint: Mapping[str, tuple[Entry, ...]] = field(init=False, repr=False)
    """Name in the file → its edges (several when its parts fill several parameters), or its tie, or why it is ignored."""
    fills: Mapping[str, tuple[Fill, ...]] = field(init=False, repr=False)
    """Parameter name → the edges that fill it, several when it is joined or stacked; ties fill nothing."""

    def __attrs_post_init__(self) -> None:
        faults: list[_Fault] = []
        entries: list[Entry] = []
        for rule in self.rules:
            try:
                entries += _expand(rule, self.sizes, self.num_layers)
            except NameMapError as error:
                faults.append(_Fault(f"{_arrow(rule)}: {error.finding.problem}"))
        named, filled = defaultdict(list), defaultdict(list)
        for entry in entries:
            named[entry.checkpoint].append(entry)
            if isinstance(entry, Fill):
                filled[entry.parameter].append(entry)
        _refuse("the name map is wrong", [*faults, *_clashes(named, filled)])
        object.__setattr__(self, "entries", tuple(entries))
        object.__setattr__(self, "by_checkpoint", {name: tuple(group) for name, group in named.items()})
        object.__setattr__(self, "fills", {name: tuple(group) for name, group in filled.items()})

    @classmethod
    def for_config(cls, config: ModelConfig, rules: Iterable[Rule]) -> NameMap:
        """Expand `rules` with a config's sizes and layer count."""
        return cls(rules=tuple(rules), sizes=config_sizes(config), num_layers=config.num_hidden_layers)

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Every parameter that is filled, with its shape."""
        return {name: edges[0].parameter_shape for name, edges in self.fills.items()}

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a complete file, with its shape; ties and what is ignored left out."""
        return {
            edge.checkpoint: edge.checkpoint_shape
            for edges in self.by_checkpoint.values()
            for edge in edges[:1]
            if isinstance(edge, Fill)
        }

    def edges(self, checkpoint: str) -> tuple[Fill, ...]:
        """The edges from a tensor of the file; none for a tie, for what is ignored, and for an unknown name."""
        return tuple(entry for entry in self.by_checkpoint.get(checkpoint, ()) if isinstance(entry, Fill))

    def check_against(self, parameters: Mapping[str, tuple[int, ...]]) -> None:
        """Compare the map with a model's own parameter names and shapes (a meta-device model will do).

        Raises:
            WrongMapError: with one finding per parameter without a rule, rule without a parameter, and wrong shape.
        """
        known = self.parameters
        faults = [f"no rule fills {name} ({did_you_mean(name, known)})" for name in parameters if name not in known]
        faults += [
            f"{edges[0].checkpoint} goes to {name}, which the model does not have ({did_you_mean(name, parameters)})"
            for name, edges in self.fills.items()
            if name not in parameters
        ]
        faults += [
            f"{name}: the map says {list(shape)}, the model has {list(parameters[name])}"
            for name, shape in known.items()
            if name in parameters and shape != tuple(parameters[name])
        ]
        _refuse("the name map does not fit the model", [_Fault(fault) for fault in faults])


@frozen
class _Fault:
    problem: str
    rule: str = ""
    hint: str = ""


def _arrow(rule: Rule) -> str:
    """A rule as messages name it."""
    return rule.checkpoint if isinstance(rule, IgnoreRule) else f"{rule.checkpoint} → {rule.parameter}"


def _refuse(what: str, faults: list[_Fault]) -> None:
    if faults:
        raise WrongMapError.of(
            Finding(problem=f"{what}: {fault.problem}", rule=fault.rule, hint=fault.hint) for fault in faults
        )


def _expand(rule: Rule, sizes: Mapping[str, int], num_layers: int) -> list[Entry]:
    """The rule's entries: one for each layer and each expert that its names have placeholders for, else one.

    Raises:
        NameMapError: a stray placeholder, an unknown size, or a row permutation whose period does not fit.
    """
    _check_placeholders(rule)
    layers = _layers(rule, num_layers) if LAYER in rule.checkpoint else (None,)
    experts = _experts(rule, sizes) if _has_experts(rule) else (None,)
    if len(layers) * len(experts) > MOST_TENSORS:
        raise NameMapError(f"{len(layers):,} layers of {len(experts):,} experts, more than {MOST_TENSORS:,} tensors")
    places = [(layer, expert) for layer in layers for expert in experts]
    if isinstance(rule, IgnoreRule):
        return [Ignored(checkpoint=_at(rule.checkpoint, *place), reason=rule.reason) for place in places]
    if isinstance(rule, TieRule):
        shape = _numbers(rule.shape, sizes)
        return [
            Tied(checkpoint=_at(rule.checkpoint, *place), parameter=_at(rule.parameter, *place), shape=shape)
            for place in places
        ]
    piece = _numbers(rule.shape, sizes)
    shapes = _numbers(rule.checkpoint_shape, sizes), _numbers(rule.parameter_shape, sizes)
    operation = _operation(rule, piece, sizes)
    cuts = [_region(part, sizes) for part in (rule.checkpoint_part, rule.parameter_part)]
    _check_cut(rule)
    return [
        Fill(
            checkpoint=_at(rule.checkpoint, layer, expert),
            checkpoint_shape=shapes[0],
            checkpoint_part=Region(0, expert or 0, 1, index=True) if isinstance(rule.checkpoint_part, Slot) else cuts[0],
            parameter=_at(rule.parameter, layer, expert),
            parameter_shape=shapes[1],
            parameter_part=Region(0, expert or 0, 1, index=True) if isinstance(rule.parameter_part, Slot) else cuts[1],
            piece=piece,
            operation=operation,
            fresh_group=rule.fresh_group,
        )
        for layer, expert in places
    ]


def _check_placeholders(rule: Rule) -> None:
    names = [rule.checkpoint] if isinstance(rule, IgnoreRule) else [rule.checkpoint, rule.parameter]
    if len({LAYER in name for name in names}) > 1:
        raise NameMapError(f"{LAYER} on one side only")
    if any(brace in name.replace(LAYER, "").replace(EXPERT, "") for name in names for brace in "{}"):
        raise NameMapError(f"{LAYER} and {EXPERT} are the only placeholders")
    if isinstance(rule, IgnoreRule):
        return
    stacked = [
        isinstance(part, Slot) for part in (getattr(rule, "checkpoint_part", None), getattr(rule, "parameter_part", None))
    ]
    sides = [(EXPERT in name, slot) for name, slot in zip(names, stacked, strict=True)]
    if any(stacked) and sides not in ([(True, False), (False, True)], [(False, True), (True, False)]):
        raise NameMapError(f"a stack has {EXPERT} on the side that has a tensor for each expert, and there only")
    if not any(stacked) and sides[0] != sides[1]:
        raise NameMapError(f"{EXPERT} on one side only; stack() makes one parameter of them")


def _check_cut(rule: FillRule) -> None:
    """Whether the cut of a split goes along the axis that has the part's size in the file."""
    for part, piece in (
        (rule.checkpoint_part, checkpoint_shape(rule.operation, rule.shape)),
        (rule.parameter_part, rule.shape),
    ):
        if isinstance(part, Part) and (part.dim >= len(piece) or piece[part.dim] != part.length):
            raise NameMapError(f"a part of size {part.length} does not lie along axis {part.dim} of [{', '.join(piece)}]")


def _has_experts(rule: Rule) -> bool:
    return EXPERT in rule.checkpoint or (not isinstance(rule, IgnoreRule) and EXPERT in rule.parameter)


def _layers(rule: Rule, count: int) -> Sequence[int]:
    wanted = getattr(rule, "layers", None)
    if wanted is None:
        return range(count)
    return [layer for layer in range(count) if (wanted(layer) if callable(wanted) else layer in wanted)]


def _experts(rule: Rule, sizes: Mapping[str, int]) -> Sequence[int]:
    count = sizes.get(EXPERTS, 0)
    if count < 1:
        raise NameMapError(f"{EXPERT} stands in a name, and the config has no {EXPERTS}")
    wanted = getattr(rule, "experts", None)
    return range(count) if wanted is None else [expert for expert in wanted if expert < count]


def _at(template: str, layer: int | None, expert: int | None) -> str:
    return template.replace(LAYER, str(layer)).replace(EXPERT, str(expert))


def _numbers(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(symbol, sizes) for symbol in shape)


def _region(part: Part | Slot | None, sizes: Mapping[str, int]) -> Region | None:
    return Region(part.dim, evaluate(part.start, sizes), evaluate(part.length, sizes)) if isinstance(part, Part) else None


def _operation(rule: FillRule, shape: tuple[int, ...], sizes: Mapping[str, int]) -> Operation:
    if rule.heads is None:
        return rule.operation
    heads = evaluate(rule.heads, sizes)
    head_dim = sizes.get("head_dim", 0)
    rows = shape[0] if shape else 0
    if head_dim % 2 or rows != heads * head_dim:
        raise NameMapError(f"row permutation of the wrong period: {rows} rows are not {heads} heads of {head_dim}")
    return RopeRowPermutation(heads)


_TILE_HINT = "Every place of a tensor and of a parameter belongs to exactly one rule."


def _clashes(named: Mapping[str, list[Entry]], filled: Mapping[str, list[Fill]]) -> list[_Fault]:
    faults: list[_Fault] = []
    for name, entries in named.items():
        edges = [entry for entry in entries if isinstance(entry, Fill)]
        if len(entries) > 1 and len(edges) < len(entries):
            faults.append(_Fault(f"{name} has {len(entries)} rules", rules.NAMES_002, _TILE_HINT))
        elif edges:
            ends = [(edge.checkpoint_part, edge.checkpoint_shape, edge.parameter) for edge in edges]
            faults += _tiling(name, ends, "two parameters for one place")
    for name, edges in filled.items():
        ends = [(edge.parameter_part, edge.parameter_shape, edge.checkpoint) for edge in edges]
        faults += _tiling(name, ends, "two tensors for one place")
        if len({edge.fresh_group for edge in edges}) > 1:
            faults.append(_Fault(f"{name} is filled by tensors of different fresh groups"))
    ties = [entry for entries in named.values() for entry in entries if isinstance(entry, Tied)]
    return faults + [_Fault(problem) for tied in ties if (problem := _wrong_tie(tied, filled))]


def _wrong_tie(tied: Tied, filled: Mapping[str, list[Fill]]) -> str | None:
    edges = filled.get(tied.parameter)
    where = f"{tied.checkpoint} is tied to {tied.parameter}"
    if not edges:
        return f"{where}, which nothing fills"
    if tied.shape != edges[0].parameter_shape:
        return f"{where} in another shape"
    if edges[0].parameter_part is not None or edges[0].checkpoint_part is not None:
        return f"{where}, which is not one tensor of the file"
    return None


def _tiling(name: str, ends: list[tuple[Region | None, tuple[int, ...], str]], twice: str) -> list[_Fault]:
    """Faults of the parts of one tensor or parameter: `ends` has each edge's part, whole shape and other end."""
    if len(ends) == 1 and ends[0][0] is None:
        return []
    shapes = {shape for _, shape, _ in ends}
    if len(shapes) > 1:
        return [_Fault(f"{name} has two shapes: {' and '.join(str(list(shape)) for shape in sorted(shapes))}")]
    cuts = {(region.dim, region.index) for region, _, _ in ends if region is not None}
    if len(cuts) > 1:
        return [_Fault(f"{name} is cut along two axes", rules.NAMES_002, _TILE_HINT)]
    shape = ends[0][1]
    dim, index = next(iter(cuts), (0, False))
    size = shape[dim] if shape else 1
    whole = Region(dim, 0, size)
    parts = sorted(((region or whole, other) for region, _, other in ends), key=lambda item: (item[0].start, item[0].stop))
    faults: list[_Fault] = []
    covered, last = 0, ""
    for region, other in parts:
        if region.start > covered:
            faults.append(_nothing(name, Region(dim, covered, region.start - covered, index)))
        if region.start < covered:
            stop = min(covered, region.stop)
            place = "" if (region.start, stop) == (0, size) else f", {Region(dim, region.start, stop - region.start, index)}"
            faults.append(_Fault(f"{name}{place}: {twice}, {last} and {other}", rules.NAMES_002, _TILE_HINT))
        if region.stop > covered:
            covered, last = region.stop, other
    if covered < size:
        faults.append(_nothing(name, Region(dim, covered, size - covered, index)))
    return faults


def _nothing(name: str, region: Region) -> _Fault:
    return _Fault(f"{name}, {region}: no rule is about this place", rules.NAMES_003, _TILE_HINT)


def to_parameters(name_map: NameMap, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a whole checkpoint's tensors into parameters; one that lacks a tensor is left out. For tests and small models."""
    return {
        name: joined(
            edges[0].parameter_shape, ((edge.parameter_part, edge.to_parameter(tensors[edge.checkpoint])) for edge in edges)
        )
        for name, edges in name_map.fills.items()
        if all(edge.checkpoint in tensors for edge in edges)
    }


def to_checkpoint(name_map: NameMap, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The exact inverse of `to_parameters`; ties are not written."""
    groups = ((name, shape, name_map.edges(name)) for name, shape in name_map.tensors.items())
    return {
        name: joined(shape, ((edge.checkpoint_part, edge.to_checkpoint(parameters[edge.parameter])) for edge in edges))
        for name, shape, edges in groups
        if all(edge.parameter in parameters for edge in edges)
    }

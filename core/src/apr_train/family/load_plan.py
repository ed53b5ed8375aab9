"""The load plan: a name map matched against a real file's tensor index, with everything that does not fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.header import TensorInfo
from apr_train.errors import Finding
from apr_train.family.name_map import Fill, Ignored, NameMap, Tied
from apr_train.suggest import ClosestTensor


@frozen(kw_only=True)
class LoadPlan:
    """The fate of every tensor of a file and of every parameter of a model."""

    loads: tuple[Fill, ...]
    """Edges from the file's tensors to parameters, those of one tensor behind each other, in the file's order."""
    duplicates: tuple[Tied, ...]
    """Tied names stored a second time; the load compares them byte for byte."""
    ignored: tuple[Ignored, ...]
    """Tensors of the file that the model does not use, each with its reason."""
    fresh: tuple[Fill, ...]
    """Edges to parameters that the file does not have and that are initialised instead."""
    findings: tuple[Finding, ...]
    """Everything that does not fit; a plan with findings must not be carried out."""

    @property
    def loaded(self) -> dict[str, tuple[Fill, ...]]:
        """Tensors of the file that fill parameters, with their edges."""
        groups: dict[str, list[Fill]] = defaultdict(list)
        for edge in self.loads:
            groups[edge.checkpoint].append(edge)
        return {name: tuple(edges) for name, edges in groups.items()}

    @property
    def filled(self) -> dict[str, tuple[Fill, ...]]:
        """Parameters that the file fills, with their edges."""
        groups: dict[str, list[Fill]] = defaultdict(list)
        for edge in self.loads:
            groups[edge.parameter].append(edge)
        return {name: tuple(edges) for name, edges in groups.items()}

    @property
    def fresh_parameters(self) -> tuple[str, ...]:
        """Parameters that are initialised, each once."""
        return tuple(dict.fromkeys(edge.parameter for edge in self.fresh))


def plan_load(name_map: NameMap, tensors: Mapping[str, TensorInfo], *, where: str) -> LoadPlan:
    """Match every tensor and every parameter; leftovers on either side become findings, all of them."""
    present = [entry for name, entries in name_map.by_checkpoint.items() if name in tensors for entry in entries]
    groups = _fresh_groups(name_map, tensors)
    wanted = [edge for edges in name_map.fills.values() for edge in edges]
    absent = dict.fromkeys(
        edge.checkpoint for edge in wanted if edge.checkpoint not in tensors and edge.fresh_group not in groups
    )
    missing = list(absent)
    unused = [name for name in tensors if name not in name_map.by_checkpoint]
    shapes = {entry.checkpoint: entry.checkpoint_shape for entry in present if isinstance(entry, Fill | Tied)}
    return LoadPlan(
        loads=tuple(entry for entry in present if isinstance(entry, Fill)),
        duplicates=tuple(entry for entry in present if isinstance(entry, Tied)),
        ignored=tuple(entry for entry in present if isinstance(entry, Ignored)),
        fresh=tuple(edge for edge in wanted if edge.fresh_group in groups),
        findings=(
            *_missing_findings(missing, unused, where),
            *_unused_findings(unused, missing, name_map, where),
            *(_shape(name, shape, tensors[name], where) for name, shape in shapes.items() if shape != tensors[name].shape),
        ),
    )


def _fresh_groups(name_map: NameMap, tensors: Mapping[str, TensorInfo]) -> set[str]:
    """Groups that are absent as a whole; a group that is there in part is a fault, not fresh."""
    groups: dict[str, bool] = {}
    for edges in name_map.fills.values():
        for edge in edges:
            if edge.fresh_group is not None:
                groups[edge.fresh_group] = groups.get(edge.fresh_group, False) or edge.checkpoint in tensors
    return {name for name, there in groups.items() if not there}


def _missing_findings(missing: list[str], unused: list[str], where: str) -> list[Finding]:
    if not missing:
        return []
    nearest = ClosestTensor(unused)
    return [_missing(name, nearest(name), where) for name in missing]


def _unused_findings(unused: list[str], missing: list[str], name_map: NameMap, where: str) -> list[Finding]:
    if not unused:
        return []
    nearest, known = ClosestTensor(missing), ClosestTensor(name_map.by_checkpoint)
    return [_unused(name, nearest(name) or known(name), where) for name in unused]


def _missing(name: str, near: str | None, where: str) -> Finding:
    return Finding(
        rule=rules.INIT_007,
        subject=where,
        field=name,
        problem="a tensor of the model is missing from the file",
        expected=name,
        found=f"unused in the file: {near}" if near else "nothing like it",
        hint="The file is incomplete or of another family.",
    )


def _unused(name: str, near: str | None, where: str) -> Finding:
    return Finding(
        rule=rules.INIT_007,
        subject=where,
        field=name,
        problem="a tensor of the file is not used by the model",
        expected=f"closest expected name: {near}" if near else "no such tensor",
        found=name,
        hint="Every tensor must be used, or declared a tie, a duplicate or ignored by the family's name map.",
    )


def _shape(name: str, shape: tuple[int, ...], tensor: TensorInfo, where: str) -> Finding:
    return Finding(
        rule=rules.INIT_005,
        subject=where,
        field=name,
        problem="wrong shape",
        expected=str(list(shape)),
        found=str(list(tensor.shape)),
        hint="Nothing is reshaped, transposed, cut or padded.",
    )

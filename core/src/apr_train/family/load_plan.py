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
    """Entries whose tensor is in the file and fills a parameter."""
    duplicates: tuple[Tied, ...]
    """Tied names stored a second time; the load compares them byte for byte."""
    ignored: tuple[Ignored, ...]
    """Tensors of the file that the model does not use, each with its reason."""
    fresh: tuple[Fill, ...]
    """Parameters that the file does not have and that are initialised instead."""
    findings: tuple[Finding, ...]
    """Everything that does not fit; a plan with findings must not be carried out."""


def plan_load(name_map: NameMap, tensors: Mapping[str, TensorInfo], *, where: str) -> LoadPlan:
    """Match every tensor and every parameter; leftovers on either side become findings, all of them."""
    present = [entry for entry in name_map.entries if entry.checkpoint in tensors]
    fresh = _fresh(name_map, tensors)
    absent = [entry for entry in name_map.fills.values() if entry.checkpoint not in tensors]
    missing = [entry.checkpoint for entry in absent if entry not in fresh]
    unused = [name for name in tensors if name not in name_map.by_checkpoint]
    shaped = [entry for entry in present if isinstance(entry, Fill | Tied)]
    return LoadPlan(
        loads=tuple(entry for entry in present if isinstance(entry, Fill)),
        duplicates=tuple(entry for entry in present if isinstance(entry, Tied)),
        ignored=tuple(entry for entry in present if isinstance(entry, Ignored)),
        fresh=tuple(fresh),
        findings=(
            *_missing_findings(missing, unused, where),
            *_unused_findings(unused, missing, name_map, where),
            *(_shape(item, tensors[item.checkpoint], where) for item in shaped if item.shape != tensors[item.checkpoint].shape),
        ),
    )


def _fresh(name_map: NameMap, tensors: Mapping[str, TensorInfo]) -> list[Fill]:
    """Fresh groups that are absent as a whole; a group that is there in part is a fault, not fresh."""
    groups: dict[str, list[Fill]] = defaultdict(list)
    for entry in name_map.fills.values():
        if entry.fresh_group is not None:
            groups[entry.fresh_group].append(entry)
    absent = [group for group in groups.values() if not any(entry.checkpoint in tensors for entry in group)]
    return [entry for group in absent for entry in group]


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


def _shape(entry: Fill | Tied, tensor: TensorInfo, where: str) -> Finding:
    return Finding(
        rule=rules.INIT_005,
        subject=where,
        field=entry.checkpoint,
        problem="wrong shape",
        expected=str(list(entry.shape)),
        found=str(list(tensor.shape)),
        hint="Nothing is reshaped, transposed, cut or padded.",
    )

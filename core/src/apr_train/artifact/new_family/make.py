"""A new family from a name and perhaps a checkpoint: concluded, tried, written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from apr_train.artifact.new_family.conclude import conclude
from apr_train.artifact.new_family.draft import Draft, without_source
from apr_train.artifact.new_family.naming import check_name
from apr_train.artifact.new_family.package import check_target, distribution, plain, write_package
from apr_train.artifact.new_family.source import open_source
from apr_train.errors import Finding
from apr_train.family.registry import Registry

_TEXTS = ("subject", "field", "problem", "expected", "found", "hint")


@frozen(kw_only=True)
class NewFamily:
    """A package that was written."""

    target: Path
    files: list[str]
    findings: tuple[Finding, ...]
    """Errors are left to do, warnings were concluded."""


def new_family(name: str, *, origin: Path | None = None, target: Path | None = None) -> NewFamily:
    """Write a family's package; nothing is written outside of `target` (`./apr-train-NAME` by default).

    Raises:
        AprTrainError: a name or a target that cannot be, or a source that no decoder can be made from.
    """
    check_name(name)
    target = target or Path(distribution(name))
    check_target(target)
    draft = without_source(name) if origin is None else _from(name, origin)
    draft.findings = [_printable(finding) for finding in draft.findings]
    return NewFamily(target=target, files=write_package(draft, target), findings=tuple(draft.findings))


def _from(name: str, origin: Path) -> Draft:
    source = open_source(origin)
    draft = conclude(name, source)
    for family in Registry.discover().families():
        if family.info.claims(source.header):
            known = source.header.hf_class or source.header.architecture
            draft.remark(f"the family {family.name} claims files of {known}, too: pass --arch", field="hf_classes")
    return draft


def _printable(finding: Finding) -> Finding:
    """The finding on one line: names in it come from the file."""
    texts: dict[str, Any] = {name: plain(getattr(finding, name), most=300) for name in _TEXTS}
    return attrs.evolve(finding, **texts)

"""preflight.json: what the preflight of a run looked at and found. Schema: docs/preflight.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from attrs import field, frozen

from apr_train.atomic import write_file
from apr_train.checkpoint.files import parse_json
from apr_train.errors import Finding, FormatError, RunError, Severity
from apr_train.run.units import size

SCHEMA_VERSION = 1
"""Keys may be added within a version, none is removed or changes its meaning."""
_HINT = "Move the file away: the run goes on without it, and the report says that there is none."
_FINDING = ("id", "where", "problem", "expected", "found", "hint", "severity")


@frozen(kw_only=True)
class PreflightRecord:
    """The part of a preflight that a reader of the run is shown."""

    findings: tuple[Finding, ...] = ()
    """Errors before warnings."""
    facts: Mapping[str, Any] = field(factory=dict, repr=False)
    """What was checked, as JSON-able data."""

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The facts in words: (name, value)."""
        return [(name, _words(_sized(value) if name == "memory" else value)) for name, value in self.facts.items()]


def _sized(memory: Any) -> Any:
    """Bytes as text; anything else, which only a file that a person changed has, as it is."""
    parts = memory.items() if isinstance(memory, Mapping) else ()
    return {part: size(value) if isinstance(value, int | float) else value for part, value in parts} or memory


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def write_preflight(path: Path, report: Mapping[str, Any]) -> None:
    """Write a preflight's report in its JSON form.

    Raises:
        OutputError: the file cannot be written; it is then as it was.
    """
    write_file(path, f"{json.dumps(report, indent=1)}\n".encode())


def read_preflight(path: Path) -> PreflightRecord | None:
    """Read what `write_preflight` wrote; None if there is no file.

    Raises:
        RunError: the file is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        return _checked(path)
    except RunError as error:
        raise error.amend(hint=_HINT) from error


def _checked(path: Path) -> PreflightRecord:
    values = _object(path)
    version = values.get("schema", "no schema")
    if version != SCHEMA_VERSION:
        raise RunError("the preflight is of another version", where=path, expected=SCHEMA_VERSION, found=version)
    findings, facts = values.get("findings"), values.get("facts")
    if not isinstance(findings, list) or not isinstance(facts, dict):
        raise RunError("this is no preflight", where=path, expected="findings and facts")
    return PreflightRecord(findings=tuple(_finding(item, path) for item in findings), facts=facts)


def _object(path: Path) -> dict[str, Any]:
    try:
        return parse_json(path, half_pairs=True)
    except FormatError as error:
        raise RunError.of(error.findings) from error


def _finding(values: Any, path: Path) -> Finding:
    texts = isinstance(values, dict) and all(isinstance(values.get(key), str) for key in _FINDING)
    if not texts or values["severity"] not in get_args(Severity):
        raise RunError("a finding is damaged", where=path, expected=f"texts for {', '.join(_FINDING)}", found=repr(values)[:80])
    return Finding(
        rule=values["id"],
        subject=values["where"],
        problem=values["problem"],
        expected=values["expected"],
        found=values["found"],
        hint=values["hint"],
        severity=values["severity"],
    )

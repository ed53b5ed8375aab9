"""What a user may see: a finding is one fault as data, and every error carries findings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import attrs
from attrs import frozen

Severity = Literal["error", "warning"]


@frozen(kw_only=True)
class Finding:
    """One fault (or one remark, as a warning) with everything that is needed to mend it."""

    problem: str
    """What is wrong, one sentence without a full stop."""
    rule: str = ""
    """An id of `apr_train.rules`; empty for a fault that no rule is about."""
    subject: str = ""
    """The file, folder, option or object that is wrong."""
    field: str = ""
    """The part of the subject: a tensor, a metadata key, a field of a config."""
    expected: str = ""
    """What would have been right."""
    found: str = ""
    """What was there."""
    hint: str = ""
    """What to do next."""
    severity: Severity = "error"
    """An error stops the run before the first step; a warning is printed and recorded."""

    @property
    def where(self) -> str:
        """`subject [field]`, for people."""
        return f"{self.subject} [{self.field}]" if self.subject and self.field else self.subject or self.field

    def to_dict(self) -> dict[str, str]:
        """The JSON form that docs/preflight.md describes."""
        return {
            "id": self.rule,
            "where": self.where,
            "problem": self.problem,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
            "severity": self.severity,
        }

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.rule, self.where, self.problem) if part)
        if self.expected:
            text += f", expected {self.expected}"
        if self.found:
            text += f", found {self.found}"
        return f"{text}. {self.hint}" if self.hint else text


class AprTrainError(Exception):
    """Base of every error that the user can mend; the command line prints it without a traceback.

    Args:
        problem: what is wrong, one sentence without a full stop.
        where: the file, the option or the object that is wrong.
        field: the part of it.
        rule: the id of the rule that is broken, if it is one's.
        expected: what would have been right.
        found: what was there.
        hint: what to do next.
    """

    exit_code = 1
    findings: tuple[Finding, ...]
    """At least one."""

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        field: str | None = None,
        rule: str = "",
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.findings = (
            Finding(
                problem=problem,
                rule=rule,
                subject=_text(where),
                field=field or "",
                expected=_text(expected),
                found=_text(found),
                hint=hint or "",
            ),
        )

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Self:
        """One error for several faults; `findings` has at least one."""
        found = tuple(findings)
        error = cls.__new__(cls, found[0].problem)  # subclasses want other arguments than a problem
        error.findings = found
        return error

    @property
    def finding(self) -> Finding:
        """The first finding; of most errors the only one."""
        return self.findings[0]

    def amend(self, **changes: Any) -> Self:
        """Change fields of the first finding, where a caller knows more than whoever raised; returns the error itself."""
        self.findings = (attrs.evolve(self.finding, **changes), *self.findings[1:])
        return self

    def under(self, rule: str, subject: str = "") -> Finding:
        """The first finding as that rule's, unless it has a rule already; `subject` stands in where the error names none."""
        return attrs.evolve(self.finding, rule=self.finding.rule or rule, subject=self.finding.subject or subject)

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self.findings if finding.severity == "error")


def _text(value: object) -> str:
    return "" if value is None else str(value)


class FormatError(AprTrainError):
    """A file that is not what it says it is: wrong magic, lying sizes, bad checksum, unsupported version.

    `path` is the file, `field` the part of it that is wrong.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: object,
        field: str | None = None,
        rule: str = "",
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem, where=path, field=field, rule=rule, expected=expected, found=found, hint=hint)


class OutputError(AprTrainError):
    """Something that could not be written: a full disk, no permission, an interrupted or incomplete write."""


class ConfigError(AprTrainError):
    """A model config that cannot be: a bad value, an unknown key, or fields that a file does not have."""


class NameMapError(AprTrainError):
    """A name map that there is not: the family's files never have the layout that was asked for."""


class WrongMapError(NameMapError):
    """A name map that is wrong in itself, whatever the file: a name twice, a parameter unmapped, a place left out."""


class PluginError(AprTrainError):
    """A family plugin that is absent, broken, or answers a hook with something else than it should.

    `distribution`, `version` and `hook` say whose fault it is, as far as that is known; what the plugin itself
    raised is the `__cause__`.
    """

    distribution: str | None = None
    version: str | None = None
    hook: str | None = None

    def __init__(
        self,
        problem: str,
        *,
        distribution: str | None = None,
        version: str | None = None,
        hook: str | None = None,
        where: object = None,
        field: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.distribution = distribution
        self.version = version
        self.hook = hook
        super().__init__(problem, where=where, field=field, expected=expected, found=found, hint=hint)


class PreflightError(AprTrainError):
    """At least one finding of severity error; `findings` has them all, warnings included."""

    exit_code = 3

    def __init__(self, findings: Iterable[Finding]) -> None:
        found = tuple(findings)
        super().__init__("the preflight found faults")
        self.findings = found


class AttentionError(AprTrainError):
    """No attention backend can run here, or the one that was asked for cannot."""


class TokenizerError(AprTrainError):
    """A tokenizer that is missing, unsupported, or does not fit."""


class DataError(AprTrainError):
    """A corpus that cannot be read, is empty, or is too small for what is asked of it."""


class RunError(AprTrainError):
    """A training run that cannot start, go on, or be resumed."""

"""The one family of exceptions that users see: what is wrong, where, expected, found, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apr_train.finding import Finding


class AprTrainError(Exception):
    """Base of every error that the user can mend; the command line prints it without a traceback.

    Args:
        problem: what is wrong, one sentence without a full stop.
        where: the file, the field or the option.
        expected: what would have been right.
        found: what was there.
        hint: what to do next.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = None if where is None else str(where)
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__(problem)

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.problem}" if self.where else self.problem]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.found is not None:
            parts.append(f"found {self.found}")
        text = ", ".join(parts)
        return f"{text}. {self.hint}" if self.hint else text


class FormatError(AprTrainError):
    """A file that is not what it says it is: wrong magic, lying sizes, bad checksum, unsupported version.

    `where` is the path and `field` the part of the file that is wrong.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: object,
        field: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.path = str(path)
        self.field = field
        where = self.path if field is None else f"{self.path} [{field}]"
        super().__init__(problem, where=where, expected=expected, found=found, hint=hint)


class OutputError(AprTrainError):
    """Something that could not be written: a full disk, no permission, an interrupted or incomplete write."""


class ConfigError(AprTrainError):
    """A model config that cannot be: a bad value, an unknown key, or fields that a file does not have."""

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
        findings: Sequence[Finding] = (),
    ) -> None:
        super().__init__(problem, where=where, expected=expected, found=found, hint=hint)
        self.findings = tuple(findings)


class NameMapError(AprTrainError):
    """A name map that is wrong in itself, whatever the file: a name twice, a parameter unmapped."""


class PluginError(AprTrainError):
    """A family plugin that is absent, broken, or answers a hook with something else than it should.

    `distribution`, `version` and `hook` say whose fault it is, as far as that is known; what the plugin itself
    raised is the `__cause__`.
    """

    def __init__(
        self,
        problem: str,
        *,
        distribution: str | None = None,
        version: str | None = None,
        hook: str | None = None,
        where: object = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.distribution = distribution
        self.version = version
        self.hook = hook
        super().__init__(problem, where=where, expected=expected, found=found, hint=hint)


class PreflightError(AprTrainError):
    """At least one finding of severity error; `findings` has them all, warnings included."""

    exit_code = 3

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        errors = [finding for finding in self.findings if finding.severity == "error"]
        super().__init__("\n".join(str(finding) for finding in errors) or "preflight failed")


class AttentionError(AprTrainError):
    """No attention backend can run here, or the one that was asked for cannot."""


class TokenizerError(AprTrainError):
    """A tokenizer that is missing, unsupported, or does not fit."""


class DataError(AprTrainError):
    """A corpus that cannot be read, is empty, or is too small for what is asked of it."""


class RunError(AprTrainError):
    """A training run that cannot start, go on, or be resumed."""

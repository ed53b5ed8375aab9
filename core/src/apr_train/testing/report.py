"""What the kit has checked of a family, what it could not check and why, and what it measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs
from attrs import define, field, frozen

from apr_train.errors import AprTrainError, Finding
from apr_train.testing.compare import ConformanceError

_log = logging.getLogger(__name__)


class NotCheckedError(Exception):
    """A check that has nothing to look at here; its text says why, for the report."""


@frozen
class Outcome:
    """What came of one check of one subject."""

    check: str
    """The check's name: `causality`, `cache`."""
    subject: str = ""
    """The preset; empty for a check of the whole family."""
    measured: str = ""
    """What the check looked at, with its numbers."""
    reason: str = ""
    """Why it was not checked; empty where it was."""
    findings: tuple[Finding, ...] = ()
    """Every fault that was found."""

    @property
    def checked(self) -> bool:
        """Whether the check ran, well or badly."""
        return not self.reason

    def __str__(self) -> str:
        name = f"{self.check}, {self.subject}" if self.subject else self.check
        if self.reason:
            return f"{name}: not checked: {self.reason}"
        if self.findings:
            return f"{name}: {len(self.findings)} faults"
        return f"{name}: {self.measured or 'kept'}"


@frozen
class Report:
    """All outcomes for one family, in the order of the checks; `str()` is a line for each."""

    family: str
    outcomes: tuple[Outcome, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every fault of every check."""
        return tuple(finding for outcome in self.outcomes for finding in outcome.findings)

    @property
    def checked(self) -> tuple[str, ...]:
        """Names of the checks that ran for at least one subject."""
        return tuple(dict.fromkeys(outcome.check for outcome in self.outcomes if outcome.checked))

    @property
    def not_checked(self) -> tuple[Outcome, ...]:
        """The outcomes that only say why nothing was checked."""
        return tuple(outcome for outcome in self.outcomes if not outcome.checked)

    def __str__(self) -> str:
        done = sum(outcome.checked for outcome in self.outcomes)
        head = f"{self.family}: {done} checks, {len(self.not_checked)} not checked, {len(self.findings)} faults"
        return "\n  ".join([head, *map(str, self.outcomes)])

    def raise_faults(self) -> None:
        """Do nothing where all is well.

        Raises:
            ConformanceError: with all faults of all checks.
        """
        if self.findings:
            raise ConformanceError.of(self.findings)


@define
class Checks:
    """Runs checks of one family one after the other, so that a fault of one hides no other's."""

    family: str
    outcomes: list[Outcome] = field(factory=list)

    def run(self, check: str, subject: str, function: Callable[..., str | None], *arguments: Any) -> bool:
        """Call `function(*arguments)` as the check of that name, and note what comes of it.

        Args:
            function: gives what it measured, or None; raises `NotCheckedError` with the reason, or an `AprTrainError` with
                the faults. Any other exception is a fault of the family's code, named by its class.

        Returns:
            Whether nothing is wrong.
        """
        try:
            self.outcomes.append(Outcome(check, subject, measured=function(*arguments) or ""))
            return True
        except NotCheckedError as reason:
            self.outcomes.append(Outcome(check, subject, reason=str(reason)))
            return True
        except AprTrainError as error:
            found = error.findings
        except Exception as error:  # whatever the family's own code raises is a fault to be told with the others
            _log.debug("%s: the check %s raised", self.family, check, exc_info=error)
            found = (Finding(problem=f"raised {type(error).__name__}: {error}"),)
        self.outcomes.append(Outcome(check, subject, findings=tuple(self._named(item, check, subject) for item in found)))
        return False

    def skip(self, check: str, subject: str, reason: str) -> None:
        """Note that a check was left out, and why."""
        self.outcomes.append(Outcome(check, subject, reason=reason))

    def report(self) -> Report:
        """All outcomes so far."""
        return Report(self.family, tuple(self.outcomes))

    def _named(self, finding: Finding, check: str, subject: str) -> Finding:
        """The finding, its subject beginning with family, check and preset."""
        name = ", ".join(part for part in (f"{self.family} {check}", subject, finding.subject) if part)
        return attrs.evolve(finding, subject=name)

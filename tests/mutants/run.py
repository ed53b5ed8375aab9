"""One defect in one family: whether the kit alone sees it, whether the comparison does, and by which check."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from apr_train.errors import AprTrainError
from apr_train.testing import ConformanceError, check_family, installed_family
from attrs import frozen
from transformers.utils import logging

from tests.mutants.apply import PROJECTS, BadDefect, applied, families_installed
from tests.mutants.defect import Defect
from tests.mutants.references import comparisons

SLIPS = (NameError, AttributeError, ImportError, UnboundLocalError)
"""What a defect raises that was written wrongly itself."""


@frozen
class Kill:
    """A check that failed."""

    check: str
    """Its name."""
    message: str
    """The first line of what it says."""


@frozen(kw_only=True)
class Outcome:
    """What became of one defect in one family."""

    area: str
    defect: str
    family: str
    kit: Kill | None
    comparison: Kill | None

    @property
    def killed_by(self) -> str:
        """`kit`, `comparison`, `both` or `nothing`."""
        if self.kit and self.comparison:
            return "both"
        return "kit" if self.kit else "comparison" if self.comparison else "nothing"


def try_out(area: str, defect: Defect, family: str) -> Outcome:
    """Put a defect in, run the kit and the comparison, take it out; within `families_installed`.

    Raises:
        BadDefect: the defect fails for another reason than a family's author would see.
    """
    with applied(defect, family):
        return Outcome(
            area=area,
            defect=defect.name,
            family=family,
            kit=_killed(lambda: check_family(installed_family(family))),
            comparison=_compared(family, defect),
        )


def control(family: str) -> Outcome:
    """The same without a defect: nothing may fail."""
    return try_out("control", Defect("none", family, ()), family)


def share_of_work(share: tuple[list[tuple[str, Defect, str]], list[str]]) -> list[Outcome]:
    """One process's cases, the given families without a defect before them, and those that had one after."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    chosen, families = share
    with families_installed():
        before = [control(family) for family in families]
        tried = [try_out(*case) for case in chosen]
        return [*before, *tried, *(control(family) for family in sorted({family for _, _, family in chosen}))]


def compared(defect: Defect, family: str) -> Kill | None:
    """The comparison alone."""
    with applied(defect, family):
        return _compared(family, defect)


def _compared(family: str, defect: Defect) -> Kill | None:
    try:
        found = installed_family(family)
    except AprTrainError:
        return _killed(lambda: installed_family(family))
    with tempfile.TemporaryDirectory() as folder:
        for name, check in comparisons(found, defect.reference, Path(folder)).items():
            if kill := _killed(check):
                return Kill(name, kill.message)
    return None


def _killed(check: Callable[[], object]) -> Kill | None:
    try:
        check()
    except AprTrainError as error:
        if isinstance(error.__cause__, SLIPS) or any(f"raised {slip.__name__}" in str(error) for slip in SLIPS):
            raise BadDefect(f"{error} ({error.__cause__})") from error
        return Kill(", ".join(_named(error)) or _check_of(error), _first_line(str(error)))
    except SLIPS as error:
        raise BadDefect(f"{type(error).__name__}: {error}") from error
    except Exception as error:  # an author sees any exception
        return Kill(_check_of(error), f"{type(error).__name__}: {_first_line(str(error))}")
    return None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _named(error: AprTrainError) -> list[str]:
    """The checks that `check_family` names in its findings' subjects: `qwen3 causality, tiny` and what else it says."""
    subjects = [
        finding.subject.split(",")[0].partition(" ") for finding in error.findings if isinstance(error, ConformanceError)
    ]
    return list(dict.fromkeys(check for family, _, check in subjects if family in PROJECTS))


def _check_of(error: BaseException) -> str:
    """The innermost function of the kit that is called a check."""
    frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames if "testing" in Path(frame.filename).parts]
    checks = [name for name in names if name.startswith("check_") and name not in ("check_family", "check_agreement")]
    return (checks or names or [frames[-1].name])[-1]

"""machine.json: what a run needs of its machine and what that could do at most, the two numbers that an MFU is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
from attrs import frozen

from apr_train.atomic import write_file
from apr_train.checkpoint.files import parse_json
from apr_train.errors import FormatError, RunError
from apr_train.family.flops import TrainingFlops
from apr_train.run.units import rate

KnownFrom = Literal["table", "asked", "measured"]
"""A vendor's data sheet, `--peak-tflops`, or matrix products at the start of the run."""
_HINT = "Move the file away: the report leaves the peak out, and a resume writes it anew."


@frozen(kw_only=True)
class Peak:
    """What a device can do at most."""

    flops_per_s: float
    known_from: KnownFrom
    source: str
    """Where the number is from: an address, an option, or what was measured."""

    def __str__(self) -> str:
        told = {"table": "data sheet", "asked": self.source, "measured": "measured"}[self.known_from]
        return f"{rate(self.flops_per_s)} ({told})"


@frozen(kw_only=True)
class Machine:
    """The device of a run, and how much of it a step can use; None for what is not known."""

    device: str
    """The vendor's name, or `cpu` with its instructions."""
    precision: str
    threads: int | None
    flops: TrainingFlops | None
    peak: Peak | None

    def mfu(self, *, tokens: int, targets: int, seconds: float) -> float | None:
        """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B): what a step needs, by what the device does in its time.

        Args:
            tokens: that the step read.
            targets: that it predicted.
            seconds: that it took.
        """
        if self.peak is None or self.flops is None or seconds <= 0:
            return None
        return self.flops.of_step(tokens, targets) / (seconds * self.peak.flops_per_s)


def write_machine(path: Path, machine: Machine) -> None:
    """Write it as JSON.

    Raises:
        OutputError: the file cannot be written; it is then as it was.
    """
    write_file(path, f"{json.dumps(attrs.asdict(machine), indent=1)}\n".encode())


def read_machine(path: Path) -> Machine | None:
    """Read what `write_machine` wrote; None if there is no file.

    Raises:
        RunError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return _checked(parse_json(path))
    except (FormatError, ValueError, TypeError, KeyError) as error:  # no JSON, other keys, other types
        problem = "this is no description of a machine"
        raise RunError(problem, where=path, found=str(error) or type(error).__name__, hint=_HINT) from error


def _checked(values: dict[str, Any]) -> Machine:
    """The machine of a file's values; ValueError, TypeError or KeyError where these are others."""
    flops, peak = values["flops"], values["peak"]
    machine = Machine(
        device=values["device"],
        precision=values["precision"],
        threads=values["threads"],
        flops=None if flops is None else TrainingFlops(**flops),
        peak=None if peak is None else Peak(**peak),
    )
    if not isinstance(machine.device, str) or not isinstance(machine.precision, str):
        raise TypeError("a name is no text")
    if machine.peak is not None and (
        not isinstance(machine.peak.flops_per_s, int | float) or machine.peak.known_from not in get_args(KnownFrom)
    ):
        raise ValueError("the peak is none")
    counts = () if machine.flops is None else attrs.astuple(machine.flops)
    if not all(isinstance(count, int) for count in counts):
        raise TypeError("a count is no whole number")
    return machine

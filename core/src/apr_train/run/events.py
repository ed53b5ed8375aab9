"""What a run tells while it goes: the protocol of a display, and the hooks of a tracker. Imports no torch.

A tracker is a class whose methods are marked with `hookimpl`; docs/trackers.md has a complete one. This module is the one
import that its author needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pluggy
from attrs import field, frozen

from apr_train.run.metrics import Metrics

Say = Callable[[str], None]
"""Called with one sentence for the user."""

PROJECT = "apr_train_tracker"
MANDATORY = ()
"""No hook of a tracker must be there: what does not interest it, it leaves out."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class RunEvents(Protocol):
    """Told of a run's events by the training loop; a context manager around all of its steps."""

    def say(self, text: str) -> None:
        """Take one message that stays."""
        ...

    def step(self, line: Metrics) -> None:
        """Take a finished step, or the validation before the first one (step 0)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@frozen(kw_only=True)
class RunStart:
    """What a tracker is told of a run before its first step."""

    name: str
    """Of the run's folder."""
    folder: Path
    """The run's."""
    own: Path
    """A folder in the run's for what the tracker writes, the same at a resume; made by whoever writes into it."""
    settings: Mapping[str, Any] = field(repr=False)
    """`optimizer.lr` → value, as in config.toml; what is None is left out."""
    paths: frozenset[str] = field(repr=False)
    """The keys of `settings` that are paths of this machine, or have some in them."""
    done: int
    """Steps that are done: 0 for a new run, more for one that goes on."""
    say: Say = field(repr=False, eq=False)
    """Tells the user a sentence."""


@frozen(kw_only=True)
class RunEnd:
    """What a tracker is told when a run ends, however it does."""

    step: int
    """Steps done."""
    result: Path | None = None
    """model.apr, or the adapter; None for a run that was interrupted, or failed."""
    ended_by: str | None = None
    """The setting that ended it early and in order, and why, such as `--max-time 30m`; there is a result."""
    stopped_by: str | None = None
    """What interrupted it, such as `SIGINT`: there is no result, and it can go on with `--resume`."""
    error: str | None = None
    """What went wrong; None when nothing did."""


@hookspec
def run_started(run: RunStart) -> None:
    """Begin: the run is ready, its folder is there, no step is done; at a resume `run.done` steps are.

    Called once. What a tracker wants to write or to connect to, it opens here, not when it is made.

    Example:
        >>> @hookimpl
        ... def run_started(self, run):
        ...     run.own.mkdir(parents=True, exist_ok=True)
    """


@hookspec
def step_done(line: Metrics) -> None:
    """Take the line of a step, as metrics.jsonl has it (docs/metrics.md); a validation in it is told by `validated`, too.

    Called after every optimizer step, between two of them: the run waits meanwhile.

    Example:
        >>> @hookimpl
        ... def step_done(self, line):
        ...     self.losses.append(line.loss)
    """


@hookspec
def validated(line: Metrics) -> None:
    """Take the line of a validation: `val_loss` and what else was measured. Step 0 is the one before the first step.

    Example:
        >>> @hookimpl
        ... def validated(self, line):
        ...     self.validations[line.step] = line.val_loss
    """


@hookspec
def run_ended(end: RunEnd) -> None:
    """Close: the result is written, or the run was stopped, or failed.

    Called once, also on a tracker that failed before: what it has open can be closed here.

    Example:
        >>> @hookimpl
        ... def run_ended(self, end):
        ...     self.file.close()
    """

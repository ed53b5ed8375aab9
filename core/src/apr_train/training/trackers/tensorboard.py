"""`--tracker tensorboard`: an event file for TensorBoard in the run's folder, by torch's own writer."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from apr_train.run.events import RunEnd, RunStart, hookimpl
from apr_train.run.metrics import Metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes each number of a line as a scalar of the same name; a resume hides what its checkpoint does not know."""

    _writer: SummaryWriter

    @hookimpl
    def run_started(self, run: RunStart) -> None:
        """Open a file of events, and write the settings into it as text."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.own), purge_step=run.done + 1 if run.done else None)
        table = "\n".join(f"    {name} = {value}" for name, value in run.settings.items())
        self._writer.add_text("settings", table, run.done)
        run.say(f"tensorboard: tensorboard --logdir {shlex.quote(str(run.folder.parent))}")

    @hookimpl
    def step_done(self, line: Metrics) -> None:
        """Write what the step has, a validation in it included."""
        self._write(line)

    @hookimpl
    def validated(self, line: Metrics) -> None:
        """Write the validation before the first step; `step_done` has the others."""
        if line.loss is None:
            self._write(line)

    def _write(self, line: Metrics) -> None:
        for name, value in line.numbers().items():
            self._writer.add_scalar(name, value, line.step)

    @hookimpl
    def run_ended(self, end: RunEnd) -> None:
        """Close the file."""
        self._writer.close()

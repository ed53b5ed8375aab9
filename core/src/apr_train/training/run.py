"""A run that is ready to go: everything that the loop uses, in one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import define, evolve, field
from torch import nn

from apr_train.data.batch import Batch
from apr_train.data.objectives import Objective
from apr_train.data.stream import BatchStream
from apr_train.model.device import Precision
from apr_train.run.events import RunEvents
from apr_train.run.folder import METRICS, MODEL, SAMPLES, checkpoints, remove_checkpoint, require_removable
from apr_train.run.metrics import Metrics, cut_back, perplexity
from apr_train.run.resume import Resume
from apr_train.run.samples import cut_samples
from apr_train.run.settings import Settings
from apr_train.training.checkpoint import (
    ModelWriter,
    broken_weights,
    load_optimizer,
    read_state,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from apr_train.training.evaluation import held_out_loss
from apr_train.training.optimizer import optimizer_tensors
from apr_train.training.processes import Processes
from apr_train.training.schedule import Schedule

HeldOut = Callable[[], Iterable[Batch]]
"""Gives the validation batches, the same ones each time."""
Evaluate = Callable[[nn.Module], Mapping[str, Any]]
"""Evaluates the model, and gives fields of `Metrics`."""


@define(kw_only=True)
class Run:
    """A run and its position; `train` moves it on."""

    settings: Settings
    schedule: Schedule
    folder: Path
    model: nn.Module = field(repr=False)
    optimizer: torch.optim.Optimizer = field(repr=False)
    stream: BatchStream = field(repr=False)
    held_out: HeldOut = field(repr=False)
    objective: Objective
    precision: Precision
    device: torch.device
    write_model: ModelWriter = field(repr=False)
    display: RunEvents = field(repr=False)
    processes: Processes = field(factory=Processes)
    """This one, and those that it shares the run with."""
    result: str = MODEL
    """What `write_model` writes: the path in the run's folder at the end, and its name in that of a checkpoint."""
    evaluate: Evaluate | None = field(default=None, repr=False)
    """What else is measured at each validation; None: nothing."""
    warm: bool = False
    """Whether the weights came from a checkpoint and must prove it at step 0 (INIT-006)."""
    arrived: bool = False
    """Whether the weights of `--init` have the reference loss that their file holds."""
    fresh: tuple[str, ...] = ()
    """Parameters that this checkpoint did not have."""
    vocab_size: int
    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens read since step 0."""

    def state(self) -> dict[str, Any]:
        """Where the run stands: all that a resume needs besides weights and optimizer."""
        return {"step": self.step, "tokens": self.tokens, "data": self.stream.state_dict(), "rng": rng_state(self.device)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go where `state` stands."""
        self.step, self.tokens = state["step"], state["tokens"]
        self.stream.load_state_dict(state["data"])
        restore_rng(state["rng"], self.device)

    def save(self, state: dict[str, Any] | None = None) -> None:
        """Write a checkpoint of the present state, or of one of a moment ago with the same weights."""
        broken, tensors = self.broken_weights(), optimizer_tensors(self.model, self.optimizer)
        self.processes.write(
            lambda: save_checkpoint(
                self.folder,
                self.state() if state is None else state,
                model=self.model,
                optimizer_state=tensors,
                write_model=self.write_model,
                model_name=Path(self.result).name,
                keep=self.settings.run.keep,
                whole=self.processes.whole,
                broken=broken,
            ),
            [*self.model.parameters(), *tensors.values()],
        )

    def broken_weights(self) -> list[str]:
        """The names of the trained parameters in which something is NaN or infinite, on any process."""
        told = self.processes.everyone(broken_weights(self.model))
        return list(dict.fromkeys(name for names in told for name in names))

    def validated(self, line: Metrics) -> Metrics:
        """The line with a validation in it."""
        how: dict[str, Any] = {"objective": self.objective, "precision": self.precision, "processes": self.processes}
        measured = held_out_loss(self.model, self.held_out(), **how)
        loss, accuracy = measured.loss, measured.accuracy
        by_source = {name: value for name, value in measured.by_source.items() if math.isfinite(value)}
        line = evolve(
            line, val_loss=loss, perplexity=perplexity(loss), val_accuracy=accuracy, source_val_loss=by_source or None
        )
        return line if self.evaluate is None or not math.isfinite(loss) else evolve(line, **self._evaluated(self.evaluate))

    def _evaluated(self, evaluate: Evaluate) -> Mapping[str, Any]:
        """What the evaluations give; the random generators are where they were."""
        state = rng_state(self.device)
        try:
            return evaluate(self.model)
        finally:
            restore_rng(state, self.device)


def restore(run: Run, resume: Resume) -> None:
    """Put optimizer, data position, random generators, metrics and samples back to the checkpoint.

    Later checkpoints are forgotten if the user named this one; otherwise it is the latest, and none is removed.

    Raises:
        FormatError: for a damaged file of the checkpoint.
        RunError: for one of another model or data.
    """
    checkpoint = resume.checkpoint
    if checkpoint is not None:
        state = read_state(checkpoint.path)
        load_optimizer(checkpoint.path, run.model, run.optimizer, step=state["step"])
        run.restore(state)
    run.processes.write(lambda: _forget_later(run, resume))


def _forget_later(run: Run, resume: Resume) -> None:
    """Take away what the folder has of steps that will be done again."""
    checkpoint = resume.checkpoint
    if checkpoint is None:
        for name in (METRICS, SAMPLES):
            (run.folder / name).unlink(missing_ok=True)
        return
    named = resume.path == checkpoint.path
    later = [item.path for item in checkpoints(run.folder) if named and item.step > checkpoint.step]
    for folder in later:
        require_removable(folder)  # before the first of them is gone
    for folder in later:
        run.display.say(f"forgetting {folder.name}: the run goes on from {checkpoint.path.name}")
        remove_checkpoint(folder)
    cut_back(run.folder / METRICS, checkpoint.step)
    cut_samples(run.folder / SAMPLES, checkpoint.step)

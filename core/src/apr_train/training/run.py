"""A run that is ready to go: everything that the loop uses, in one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from attrs import define, evolve, field
from torch import Tensor, nn

from apr_train import rules
from apr_train.data.batch import Batch
from apr_train.data.objectives import Objective
from apr_train.data.stream import BatchStream
from apr_train.model.device import Precision
from apr_train.run.changes import Change
from apr_train.run.course import best_of, compared
from apr_train.run.events import RunEvents
from apr_train.run.folder import (
    CHANGES,
    METRICS,
    MODEL,
    SAMPLES,
    StepFolder,
    checkpoints,
    remove_checkpoint,
    require_removable,
    step_name,
)
from apr_train.run.machine import Machine
from apr_train.run.measures import NONE, Measure, best_line, measure_named
from apr_train.run.metrics import Metrics, cut_back, perplexity
from apr_train.run.resume import Resume
from apr_train.run.samples import cut_samples
from apr_train.run.settings import Settings
from apr_train.run.trackers import Trackers
from apr_train.training.averaging import AveragedWeights
from apr_train.training.checkpoint import (
    ModelWriter,
    Weights,
    broken_weights,
    load_optimizer,
    read_state,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from apr_train.training.ending import TimeLimit, stopped_early
from apr_train.training.evaluation import Validation, held_out_loss
from apr_train.training.optimizer.make import Optimizers
from apr_train.training.optimizer.state import optimizer_tensors
from apr_train.training.processes import Processes, Whole
from apr_train.training.profile import StepProfiler
from apr_train.training.schedule import Schedule
from apr_train.training.signals import StopRequest
from apr_train.training.spikes import SpikeGuard
from apr_train.training.step import NonFiniteError
from apr_train.training.writing import ROOM, Writing

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
    optimizer: Optimizers = field(repr=False)
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
    trackers: Trackers = field(factory=Trackers, repr=False)
    evaluate: Evaluate | None = field(default=None, repr=False)
    """What else is measured at each validation; None: nothing."""
    warm: bool = False
    """Whether the weights came from a checkpoint and must prove it at step 0 (INIT-006)."""
    arrived: bool = False
    """Whether the weights of `--init` have the reference loss that their file holds."""
    fresh: tuple[str, ...] = ()
    """Parameters that this checkpoint did not have."""
    vocab_size: int
    profiler: StepProfiler | None = field(default=None, repr=False)
    """Traces some of the steps."""
    machine: Machine | None = None
    """What a step needs and what the device could do, for the MFU; None: it is not told."""
    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens read since step 0."""
    spikes: SpikeGuard | None = field(default=None, repr=False)
    """What skips steps; None: nothing does."""
    averaged: AveragedWeights | None = field(default=None, repr=False)
    """The averages that are validated, sampled and written in place of the trained weights; None: there are none."""
    time: TimeLimit = field(factory=lambda: TimeLimit(limit=None), repr=False)
    changes: tuple[Change, ...] = ()
    """What resumes of this run changed in its settings."""
    writing: Writing | None = field(default=None, init=False, repr=False)
    """What writes a checkpoint while the loop goes on."""
    coming: int | None = field(default=None, init=False)
    """The step of that checkpoint."""
    has_room: bool | None = field(default=None, init=False)
    """Whether there is memory for copies of what checkpoints hold; None: nobody has looked yet."""
    validations: list[Metrics] = field(factory=list, repr=False)
    """The lines so far that can be compared: those with a validation, without any that asked other questions."""

    def state(self) -> dict[str, Any]:
        """Where the run stands: all that a resume needs besides weights and optimizer."""
        place = {"step": self.step, "tokens": self.tokens, "data": self.stream.state_dict(), "rng": rng_state(self.device)}
        return place if self.spikes is None else place | {"spikes": self.spikes.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go where `state` stands."""
        self.step, self.tokens = state["step"], state["tokens"]
        self.stream.load_state_dict(state["data"])
        restore_rng(state["rng"], self.device)
        if self.spikes is not None:
            self.spikes.load_state_dict(state.get("spikes", {}))

    @property
    def measure(self) -> Measure:
        """By what its validations are compared."""
        return measure_named(self.settings.run.keep_best)

    def best(self) -> StepFolder | None:
        """The checkpoint that `--keep-best` keeps: the best of those that are there and were measured."""
        return best_of(self.folder, self.validations, self.settings)

    def is_better(self, line: Metrics) -> bool:
        """Whether `--keep-best` wants a checkpoint of this line's step, the last of the validations."""
        if self.settings.run.keep_best == NONE:
            return False
        processes = self.processes
        return processes.first_says(processes.is_first and self._best_step(line.step) == line.step)  # who sees the folder

    def result_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that are validated, sampled and written: the averaged ones, if there are any."""
        return nullcontext() if self.averaged is None else self.averaged.in_place_of(self.model)

    def save(self, state: dict[str, Any] | None = None, *, behind: bool = False) -> None:
        """Write a checkpoint of the present state, or of one of a moment ago with the same weights.

        Args:
            state: that of a moment ago.
            behind: write a copy while the loop goes on, as far as `--async-save` allows it. `settle` tells what comes of it.

        Raises:
            NonFiniteError: when a weight is not finite; nothing is written or removed then.
            OutputError: when it, or the one before it, cannot be written; nothing is removed then.
        """
        self.settle()
        state = self.state() if state is None else state
        broken, made = self.broken_weights(), self.folder / step_name(state["step"])
        if broken and not self.processes.first_says(made.exists()):
            raise NonFiniteError("the weights are not finite", rule=rules.INV_TRAIN_007, where=f"step {state['step']}")
        with self.result_weights():
            write, tensors = self._checkpoint(state)
            if behind and self._goes_on(tensors):
                self.writing, self.coming = self.processes.write_behind(write, tensors), state["step"]
            else:
                self.processes.write_tensors(write, tensors)

    def _checkpoint(self, state: dict[str, Any]) -> tuple[Callable[[Whole], Path], list[Tensor]]:
        """What writes a checkpoint of the weights and states as they are, and the tensors that go into it."""
        optimizer = optimizer_tensors(self.model, self.optimizer)
        averaging = {} if self.averaged is None else self.averaged.tensors(self.model)
        weights = Weights.of(self.model)
        best = self._best_step(state["step"]) if self.processes.is_first else None

        def write(whole: Whole) -> Path:
            return save_checkpoint(
                self.folder,
                state,
                weights=evolve(weights, make_whole=whole),
                optimizer_state=optimizer,
                averaging=averaging,
                write_model=self.write_model,
                model_name=Path(self.result).name,
                keep=self.settings.run.keep,
                spare=() if best is None else (best,),
            )

        return write, [*self.model.parameters(), *optimizer.values(), *averaging.values()]

    def _goes_on(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the loop goes on while a checkpoint of the tensors is written; where it is asked, memory decides it once.

        Later the memory of the last copy is this process's already.
        """
        way = self.settings.run.async_save
        if way != "auto":
            return way == "on"
        if self.has_room is None:
            self.has_room = self.processes.has_room(tensors)
            if not self.has_room:
                self.display.say(
                    f"steps wait for checkpoints to be written: a copy would take more than 1/{ROOM} of the memory that is "
                    "free; --async-save on takes it all the same"
                )
        return self.has_room

    def settle(self, *, wait: bool = True) -> None:
        """Learn what has come of the checkpoint that was being written, if there is one; `wait`: until it is whole.

        Raises:
            OutputError: when it could not be written; nothing was removed for it.
        """
        if self.writing is None:
            return
        try:
            settled = self.processes.is_settled(self.writing, wait=wait)
        except BaseException:
            self.writing = None
            raise
        if settled:
            self.writing = self.coming = None

    @contextmanager
    def settled_at_the_end(self, stop: StopRequest) -> Iterator[None]:
        """At the end no checkpoint is being written any more: it is whole, or not there. A second signal does not wait."""
        try:
            yield
        except BaseException as error:
            if self.writing is not None and not (stop and isinstance(error, KeyboardInterrupt)):
                self.processes.give_up(self.writing, error)
            raise
        self.settle()

    def _best_step(self, coming: int) -> int | None:
        """The step whose checkpoint `--keep-best` keeps, of those that are there and of one to come; None for none."""
        if self.settings.run.keep_best == NONE:
            return None
        line = best_line(self.validations, self.measure, among=self._steps() | {coming})
        return None if line is None else line.step

    def _steps(self) -> set[int]:
        """Those whose checkpoints are there, or on their way."""
        return {item.step for item in checkpoints(self.folder)} | ({self.coming} if self.coming is not None else set())

    def broken_weights(self) -> list[str]:
        """The names of the trained parameters in which something is NaN or infinite, on any process."""
        told = self.processes.everyone(broken_weights(self.model))
        return list(dict.fromkeys(name for names in told for name in names))

    def has_no_time(self, line: Metrics) -> bool:
        """Whether `--max-time` ends the run behind this line; of several processes, the first one's clock says so."""
        over = self.time.check(line.step_time or 0.0)
        if self.time.limit is not None:
            self.time.over = self.processes.first_says(over)
        return self.time.over

    def ended_early(self) -> str | None:
        """Why the run ends after its validations so far, by `--early-stop`; None: it goes on."""
        if not self.settings.run.early_stop:
            return None
        return self.processes.first_says(stopped_early(self.settings.run, self.validations, self.measure))

    def validated(self, line: Metrics) -> Metrics:
        """The line with a validation in it, of the averaged weights if there are any, and with the loss of the trained ones."""
        begin = perf_counter()
        if self.averaged is not None and line.step:
            line = evolve(line, trained_val_loss=self._held_out().loss)
        with self.result_weights():
            line = self._validated(line)
        self.time.validated(perf_counter() - begin)
        self.validations.append(line)
        return line

    def _held_out(self) -> Validation:
        how: dict[str, Any] = {"objective": self.objective, "precision": self.precision, "processes": self.processes}
        return held_out_loss(self.model, self.held_out(), **how)

    def _validated(self, line: Metrics) -> Metrics:
        measured = self._held_out()
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
        other_types = any(resume.is_changed(name) for name in ("run.precision", "optimizer.bf16_update"))
        if run.averaged is not None:  # first: a master copy that begins or ends here is one of the trained weights
            run.averaged.restore(run.model, checkpoint.path, convert=other_types)
        load_optimizer(checkpoint.path, run.model, run.optimizer, step=state["step"], convert=other_types)
        run.restore(state)
    run.processes.write(lambda: _forget_later(run, resume))


def _forget_later(run: Run, resume: Resume) -> None:
    """Take away what the folder has of steps that will be done again."""
    checkpoint = resume.checkpoint
    if checkpoint is None:
        for name in (METRICS, SAMPLES, CHANGES):
            (run.folder / name).unlink(missing_ok=True)
        return
    named = resume.path == checkpoint.path
    later = [item.path for item in checkpoints(run.folder) if named and item.step > checkpoint.step]
    for folder in later:
        require_removable(folder)  # before the first of them is gone
    for folder in later:
        run.display.say(f"forgetting {folder.name}: the run goes on from {checkpoint.path.name}")
        remove_checkpoint(folder)
    kept = cut_back(run.folder / METRICS, checkpoint.step)
    run.validations = compared(kept, run.settings, resume.changes)
    cut_samples(run.folder / SAMPLES, checkpoint.step)

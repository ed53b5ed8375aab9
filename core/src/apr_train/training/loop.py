"""The training loop: read it top to bottom."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from signal import Signals
from time import perf_counter

from attrs import frozen

from apr_train import rules
from apr_train.model.device import memory_errors, peak_memory
from apr_train.run.folder import METRICS, MODEL, checkpoints
from apr_train.run.metrics import Metrics, MetricsFile
from apr_train.training.evaluation import judge_start
from apr_train.training.processes import Unheard
from apr_train.training.run import Run
from apr_train.training.signals import SIGNALS, StopRequest
from apr_train.training.step import NonFiniteError, train_step


@frozen(kw_only=True)
class Outcome:
    """How the loop ended."""

    last: Metrics | None
    """The last line that was written; None when there was nothing left to do."""
    stopped_by: str | None = None
    """The signal that ended it early, such as `SIGINT`."""
    ended_by: str | None = None
    """The setting that ended it early and in order, and why: `--max-time 30m`, `--early-stop 3: …`."""


def train(run: Run, *, signals: Sequence[Signals] = SIGNALS) -> Outcome:
    """Take the run to its last step, or to where a signal stops it; everything on disk is whole at every moment.

    Args:
        run: at its start, or where a checkpoint left it.
        signals: those that end the run after a step; none leaves a host application's own handlers in place.

    Raises:
        RunError: a start that knows nothing (FALSIFY-APR-PRETRAIN-INIT-006), or not enough memory.
        NonFiniteError: INV-TRAIN-007; the last good state is saved.
        OutputError: when the disk is full.
    """
    try:
        return _train(run, StopRequest(signals))
    except NonFiniteError as error:
        raise _with_hint(run, error) from error


def _train(run: Run, request: StopRequest) -> Outcome:
    last, often = run.settings.run.steps, run.settings.run
    line = ended = None
    profiler = run.profiler or nullcontext()
    with (
        request as stop,
        run.processes.metrics(run.folder / METRICS) as metrics,
        run.display as display,
        profiler,
        run.settled_at_the_end(stop),
    ):
        if run.step == 0:
            line = _start(run)
            metrics.write(line)
            display.step(line)
            run.trackers.line(line)
        stopped = run.processes.stopped_by(stop)
        while run.step < last and stopped is None and ended is None:
            line = _advance(run, metrics)
            metrics.write(line)
            if stop.name != "SIGHUP":  # the terminal is gone
                display.step(line)
            run.trackers.line(line)
            run.settle(wait=False)
            if _due(run.step, often.save_every, last) or (line.val_loss is not None and run.is_better(line)):
                _save(run, metrics, behind=run.step < last)
            ended = _ended(run, line)
            stopped = run.processes.stopped_by(stop)
        if run.step:
            _save(run, metrics)  # a checkpoint that is there stays as it is: only a signal leaves something to save here
        stopped = stopped or run.processes.stopped_by(stop)
    is_over = run.step >= last
    return Outcome(last=line, stopped_by=None if is_over else stopped, ended_by=None if is_over else ended)


def _ended(run: Run, line: Metrics) -> str | None:
    """Why the run ends in order behind this line, which then has a validation; None: it goes on."""
    if run.time.over:
        return f"--max-time {run.settings.run.max_time}"
    return None if line.val_loss is None else run.ended_early()


def _start(run: Run) -> Metrics:
    """Measure the weights that the run starts from, and refuse those of an `--init` that know nothing."""
    with memory_errors("step 0"):
        line = run.validated(Metrics(step=0))
    if run.warm and line.val_loss is not None:
        allow = run.settings.run.allow_cold_init
        run.display.say(judge_start(line.val_loss, run.vocab_size, allow=allow, fresh=run.fresh, arrived=run.arrived))
    return _finite(line)


def _advance(run: Run, metrics: MetricsFile | Unheard) -> Metrics:
    """One step, validated when it is time; the state before a step that cannot be taken is saved."""
    before, often = run.state(), run.settings.run
    with memory_errors(f"step {run.step + 1}"):
        try:
            line = _step(run) if run.profiler is None else run.profiler.around(run.step + 1, lambda: _step(run))
        except NonFiniteError as error:
            metrics.sync()
            if not error.changed and not run.broken_weights():
                run.save(before)
            raise
        due = run.has_no_time(line) or _due(run.step, often.val_every, often.steps)
        return _finite(run.validated(line)) if due else line


def _finite(line: Metrics) -> Metrics:
    """The line, unless its validation says that the weights are of no use."""
    for loss in (line.val_loss, line.trained_val_loss):
        if loss is not None and not math.isfinite(loss):
            problem, where = "the validation loss is not finite", f"step {line.step}"
            raise NonFiniteError(problem, rule=rules.INV_TRAIN_007, where=where, found=loss)
    return line


def _save(run: Run, metrics: MetricsFile | Unheard, *, behind: bool = False) -> None:
    metrics.sync()
    run.save(behind=behind)


def _step(run: Run) -> Metrics:
    """One optimizer step; moves the run's position."""
    settings, step = run.settings, run.step + 1
    rate = run.schedule.rate(step)
    run.optimizer.set_learning_rate(rate)
    run.processes.draw_by(settings.run.seed, step)
    begin = perf_counter()
    result = train_step(
        run.model,
        run.optimizer,
        [run.stream.next_batch().to(run.device) for _ in range(settings.data.accumulate)],
        objective=run.objective,
        precision=run.precision,
        clip_norm=settings.optimizer.clip_norm,
        step=step,
        compiled=bool(settings.run.compile),
        judge=None if run.spikes is None else run.spikes.judge,
        processes=run.processes,
    )
    if result.skipped is not None:
        run.display.say(f"step {step} skipped, as --skip-spikes {settings.run.skip_spikes:g} says: {result.skipped}")
    elif run.averaged is not None:
        run.averaged.update(run.model)
    shortest, seconds = run.processes.span(perf_counter() - begin)
    run.step, run.tokens = step, run.tokens + result.tokens
    return Metrics(
        step=step,
        loss=result.loss,
        aux_loss=result.aux_loss,
        lr=rate,
        grad_norm=result.grad_norm,
        skipped=None if result.skipped is None else 1,
        targets=result.targets,
        tokens=run.tokens,
        tokens_per_s=result.tokens / seconds,
        step_time=seconds,
        mfu=None if run.machine is None else run.machine.mfu(tokens=result.tokens, targets=result.targets, seconds=seconds),
        memory=int(run.processes.span(peak_memory(run.device))[1]),
        **run.processes.measured(seconds - shortest),
        source_tokens=run.stream.tokens_read or None,
    )


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _with_hint(run: Run, error: NonFiniteError) -> NonFiniteError:
    """What to do: not a resume, which would take the same step again."""
    broken, kept = run.broken_weights(), checkpoints(run.folder)
    told = f"Weights that are not finite: {', '.join(broken[:8])}. " if broken else ""
    source = ""
    if kept and kept[-1].step and run.result == MODEL:
        told += f"The last good state is {kept[-1].path}. "
        source = f"--init {shlex.quote(str(kept[-1].path / MODEL))} and "
    hint = f"{told}Start a new run with {source}a lower --lr or another --precision."
    return error.amend(hint=hint)

"""The training loop: read it top to bottom."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from attrs import frozen

from apr_train.train.memory import peak_memory
from apr_train.train.metrics import FILE, Metrics, MetricsFile
from apr_train.train.optimizer import set_learning_rate
from apr_train.train.run import Run
from apr_train.train.schedule import learning_rate
from apr_train.train.signals import StopRequest
from apr_train.train.step import NonFiniteError, train_step
from apr_train.train.validate import judge_start


@frozen(kw_only=True)
class Outcome:
    """How the loop ended."""

    last: Metrics | None
    """The last line that was written; None when there was nothing left to do."""
    stopped_by: str | None = None
    """The signal that ended it early, such as `SIGINT`."""


def train(run: Run) -> Outcome:
    """Take the run to its last step, or to where a signal stops it; everything on disk is whole at every moment.

    Raises:
        RunError: a start that knows nothing (FALSIFY-APR-PRETRAIN-INIT-006).
        NonFiniteError: INV-TRAIN-007; the state before the bad step is saved.
    """
    last, often = run.settings.run.steps, run.settings.run
    line = None
    with StopRequest() as stop, MetricsFile(run.folder / FILE) as metrics, run.display as display:
        if run.step == 0:
            line = _start(run)
            metrics.write(line)
            display.step(line)
        while run.step < last and not stop:
            before = run.state()
            try:
                line = _step(run)
            except NonFiniteError as error:
                metrics.sync()
                raise _with_last_good_state(run, before, error) from error
            if _due(run.step, often.val_every, last):
                line = run.validated(line)
            metrics.write(line)
            display.step(line)
            if stop or _due(run.step, often.save_every, last):
                metrics.sync()
                run.save()
    return Outcome(last=line, stopped_by=stop.name if run.step < last else None)


def _start(run: Run) -> Metrics:
    """Measure the weights that the run starts from, and refuse those of an `--init` that know nothing."""
    line = run.validated(Metrics(step=0))
    if run.warm and line.val_loss is not None:
        allow = run.settings.run.allow_cold_init
        run.display.say(judge_start(line.val_loss, run.vocab_size, allow=allow, fresh=run.fresh))
    return line


def _step(run: Run) -> Metrics:
    """One optimizer step; moves the run's position."""
    settings, step = run.settings, run.step + 1
    rate = learning_rate(step, settings.run.steps, settings.optimizer)
    set_learning_rate(run.optimizer, rate)
    begin = perf_counter()
    result = train_step(
        run.model,
        run.optimizer,
        [run.stream.next_batch().to(run.device) for _ in range(settings.data.accumulate)],
        objective=run.objective,
        precision=run.precision,
        clip_norm=settings.optimizer.clip_norm,
        step=step,
        compiled=settings.run.compile,
    )
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    seconds = perf_counter() - begin
    run.step, run.tokens = step, run.tokens + result.tokens
    return Metrics(
        step=step,
        loss=result.loss,
        lr=rate,
        grad_norm=result.grad_norm,
        targets=result.targets,
        tokens=run.tokens,
        tokens_per_s=result.tokens / seconds,
        step_time=seconds,
        memory=peak_memory(run.device),
    )


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _with_last_good_state(run: Run, before: dict[str, Any], error: NonFiniteError) -> NonFiniteError:
    """Save the state before the bad step, if its weights are finite, and say where it is."""
    broken = [name for name, parameter in run.model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if broken:
        hint = f"The weights themselves were not finite any more: {', '.join(broken[:8])}. Resume an earlier checkpoint"
    else:
        hint = f"The state before this step is kept in {run.save(before)}"
    problem, where, found = error.problem, error.where, error.found
    return NonFiniteError(problem, where=where, found=found, hint=f"{hint}, with a lower --lr or another precision.")

"""What happened on a run's way: the best checkpoint, averaged weights, skipped steps, settings that resumes changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from apr_train.run.changes import Change, last_change
from apr_train.run.folder import StepFolder, checkpoints
from apr_train.run.measures import NONE, best_line, measure_named
from apr_train.run.metrics import Metrics
from apr_train.run.settings import Settings

_MOST = 12
"""Steps, and changes, that are listed; of more the first ones, and how many."""


def compared(lines: Iterable[Metrics], settings: Settings, changes: Collection[Change]) -> list[Metrics]:
    """The validations that `--keep-best` and `--early-stop` compare: of an evaluation, since it asks what it asks now."""
    since = -1 if measure_named(settings.run.keep_best).evaluation is None else last_change(changes, "run.eval")
    return [line for line in lines if line.val_loss is not None and line.step > since]


def best_of(folder: Path, validations: Iterable[Metrics], settings: Settings) -> StepFolder | None:
    """The checkpoint that `--keep-best` keeps: the best of those that are there and were measured."""
    if settings.run.keep_best == NONE:
        return None
    there = {item.step: item for item in checkpoints(folder)}
    line = best_line(validations, measure_named(settings.run.keep_best), among=there)
    return None if line is None else there[line.step]


def best_checkpoint(
    folder: Path, lines: Iterable[Metrics], settings: Settings, changes: Collection[Change]
) -> StepFolder | None:
    """The same from all lines of a run that is read back."""
    return best_of(folder, compared(lines, settings, changes), settings)


def course(
    lines: Sequence[Metrics], settings: Settings, best: StepFolder | None, changes: Sequence[Change]
) -> Mapping[str, str]:
    """Label → text, of what there is to tell.

    Args:
        lines: all of metrics.jsonl.
        settings: of the run, the last ones.
        best: the checkpoint that `--keep-best` keeps.
        changes: what resumes changed.
    """
    told = {}
    if best is not None:
        told["best"] = _best(lines, settings, best)
    if settings.run.ema is not None:
        told["averaged"] = _averaged(lines, settings.run.ema)
    if skipped := [line.step for line in lines if line.skipped]:
        told["skipped"] = f"{_steps(len(skipped))} as spikes: {_listed(skipped, ', ')}"
    if changes:
        told["changed"] = _listed(changes, "; ")
    return told


def _listed(items: Sequence[object], between: str) -> str:
    more = f" and {len(items) - _MOST} more" if len(items) > _MOST else ""
    return f"{between.join(map(str, items[:_MOST]))}{more}"


def _steps(number: int) -> str:
    return f"{number} step{'s' * (number != 1)}"


def _best(lines: Sequence[Metrics], settings: Settings, best: StepFolder) -> str:
    """The kept checkpoint, and its number beside the last one's."""
    measure = measure_named(settings.run.keep_best)
    values = {line.step: value for line in lines if (value := measure.of(line)) is not None}
    last = max(values)
    text = f"{best.path.name}, {measure.text} {values[best.step]:.4f}"
    return text if last == best.step else f"{text}; the last one, at step {last}, is {values[last]:.4f}"


def _averaged(lines: Sequence[Metrics], decay: float) -> str:
    """What is of the averaged weights, and both losses."""
    told = f"--ema {decay:g}: validations, sample and result are of the averaged weights"
    both = [line for line in lines if line.trained_val_loss is not None]
    if not both:
        return told
    return f"{told}, validation loss {both[-1].val_loss:.4f}; the trained ones' is {both[-1].trained_val_loss:.4f}"

"""What came of each run, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import frozen

from apr_train.artifact.report.text import NOTHING, count, duration, key, loss, number, size, table
from apr_train.run.record import Record


@frozen(kw_only=True)
class Numbers:
    """A run's results; None for what was not measured."""

    step: int
    planned: int | None
    tokens: int | None
    first: float | None
    last: float | None
    """Validation loss before the first step, and the last one."""
    best: tuple[int, float] | None
    """Step and value of the lowest validation loss."""
    perplexity: float | None
    accuracy: float | None
    loss: float | None
    speed: float | None
    seconds: float
    memory: int | None


def numbers(record: Record) -> Numbers:
    """Read a run's results off its metrics."""
    measured = record.measured
    losses = [(line.step, line.val_loss) for line in measured if line.val_loss is not None]
    seconds = sum(line.step_time or 0.0 for line in record.lines)
    timed = [line for line in record.lines if line.step_time and line.tokens_per_s][1:]
    steady = sum(line.step_time or 0.0 for line in timed)
    read = sum((line.tokens_per_s or 0.0) * (line.step_time or 0.0) for line in timed)
    planned = record.settings.get("run.steps")
    return Numbers(
        step=record.lines[-1].step,
        planned=planned if isinstance(planned, int) else None,
        tokens=next((line.tokens for line in reversed(record.lines) if line.tokens is not None), None),
        first=losses[0][1] if losses else None,
        last=losses[-1][1] if losses else None,
        best=min(losses, key=lambda item: item[1]) if losses else None,
        perplexity=measured[-1].perplexity if measured else None,
        accuracy=measured[-1].val_accuracy if measured else None,
        loss=next((line.loss for line in reversed(record.lines) if line.loss is not None), None),
        speed=read / steady if steady else None,
        seconds=seconds,
        memory=max((line.memory for line in record.lines if line.memory is not None), default=None),
    )


def summary_cards(records: Sequence[Record]) -> str:
    """One card a run: the number that matters, large."""
    found = [numbers(record) for record in records]
    ended = [item.last for item in found if item.last is not None]
    best = min(ended) if len(records) > 1 and ended else None
    cards = (_card(run, records[run], item, best=item.last == best) for run, item in enumerate(found))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(run: int, record: Record, item: Numbers, *, best: bool) -> str:
    badge = '<span class="badge">lowest</span>' if best and item.last is not None else ""
    change = f'<p class="change">{_change(item.first, item.last)}</p>' if item.step > 0 else ""
    facts = [f"{count(item.step)} of {count(item.planned)} steps" if item.planned else f"{count(item.step)} steps"]
    facts += [f"perplexity {number(item.perplexity)}"] if item.perplexity is not None else []
    facts += [f"{number(item.speed)} tokens/s"] if item.speed is not None else []
    what = "validation loss" if item.last is not None else "training loss"
    value = item.last if item.last is not None else item.loss
    return (
        f'<article class="card run-{run % 8}"><h3>{key(run, record.label)}{badge}</h3>'
        f'<p class="big">{loss(value)}<small>{what}</small></p>{change}<p class="facts">{" · ".join(facts)}</p></article>'
    )


def _change(first: float | None, last: float | None) -> str:
    if first is None or last is None:
        return ""
    share = abs(last - first) / first if first > 0 else math.nan
    sign = "−" if last <= first else "+"
    return f"from {loss(first)}" + (f" ({sign}{share:.0%})" if math.isfinite(share) else "")


def summary_table(records: Sequence[Record]) -> str:
    """Every number, a row a run."""
    found = [numbers(record) for record in records]
    head = ["run", "steps", "tokens", "validation loss", "lowest", "perplexity", "training loss", "tokens/s", "time", "memory"]
    accurate = any(item.accuracy is not None for item in found)
    rows = []
    for run, item in enumerate(found):
        lowest = f"{loss(item.best[1])} <small>at {count(item.best[0])}</small>" if item.best else NOTHING
        cells = [
            key(run, records[run].label),
            count(item.step),
            count(item.tokens),
            loss(item.last),
            lowest,
            number(item.perplexity),
            loss(item.loss),
            number(item.speed),
            duration(item.seconds) if item.seconds else NOTHING,
            size(item.memory),
        ]
        rows.append([*cells, number(item.accuracy)] if accurate else cells)
    return table([*head, "accuracy"] if accurate else head, rows, label="Final numbers")

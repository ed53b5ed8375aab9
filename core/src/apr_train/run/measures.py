"""By what the validations of a run are compared: which is the best so far, and how many came after it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import frozen

from apr_train.run.evaluation_names import EvaluationName
from apr_train.run.metrics import Metrics


@frozen(kw_only=True)
class Measure:
    """One number of a validation."""

    field: str
    """Of `Metrics`."""
    text: str
    """For people."""
    lower: bool = True
    """Whether less is better."""
    evaluation: EvaluationName | None = None
    """What `--eval` must ask for; None: nothing."""

    def of(self, line: Metrics) -> float | None:
        """The number in a line; None where it was not measured."""
        value = getattr(line, self.field)
        return None if value is None else float(value)

    def better(self, value: float, than: float) -> bool:
        """Whether a number is better than another; an equal one is not."""
        return value < than if self.lower else value > than


NONE = "none"
"""What `--keep-best` takes for keeping none."""
MEASURES: Mapping[str, Measure] = {
    "val_loss": Measure(field="val_loss", text="validation loss"),
    "fim": Measure(field="eval_fim_loss", text="loss of --eval fim", evaluation="fim"),
    "syntax": Measure(field="eval_syntax", text="share of --eval syntax", lower=False, evaluation="syntax"),
}
"""What `--keep-best` takes → what is compared. A loss of hidden lines, since a share of exact ones ties often."""


def measure_named(name: str) -> Measure:
    """The measure of `--keep-best`; where there is none, `--early-stop` goes by the validation loss."""
    return MEASURES.get(name, MEASURES["val_loss"])


def best_line(lines: Iterable[Metrics], measure: Measure, *, among: Collection[int] | None = None) -> Metrics | None:
    """The line of the best validation, the earlier one of equals; None when there is none.

    Args:
        lines: by step.
        measure: compares them.
        among: only the lines of these steps; None: all.
    """
    best: tuple[float, Metrics] | None = None
    for line in lines:
        value = measure.of(line)
        if value is None or (among is not None and line.step not in among):
            continue
        if best is None or measure.better(value, best[0]):
            best = value, line
    return None if best is None else best[1]


def since_best(lines: Sequence[Metrics], measure: Measure) -> int:
    """How many validations came after the best one."""
    best = best_line(lines, measure)
    return 0 if best is None else sum(line.step > best.step and measure.of(line) is not None for line in lines)

"""When a run ends in order before its last step: its time is over, or nothing gets better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from attrs import Factory, define, field

from apr_train.run.duration import seconds
from apr_train.run.measures import Measure, since_best
from apr_train.run.metrics import Metrics
from apr_train.run.settings import RunSettings


@define(kw_only=True)
class TimeLimit:
    """`--max-time`: what has begun ends within it, saving excepted."""

    limit: float | None
    """Seconds; None: there is none."""
    clock: Callable[[], float] = monotonic
    begun: float = Factory(lambda self: self.clock(), takes_self=True)
    """When the time began, by the clock."""
    over: bool = field(default=False, init=False)
    """What the last `check` said."""
    _validation: float = field(default=0.0, init=False)
    _is_warm: bool = field(default=False, init=False)

    @classmethod
    def of(cls, settings: RunSettings, begun: float) -> TimeLimit:
        """That of a run that began at a moment of `time.monotonic`."""
        limit = 0 if settings.max_time is None else seconds(settings.max_time)
        return cls(limit=limit or None, begun=begun)

    def validated(self, spent: float) -> None:
        """Note the seconds of a validation: the run ends with one."""
        self._validation = spent

    def check(self, step: float) -> bool:
        """Whether another step, and a validation, would not end in time.

        Args:
            step: seconds of the last one; not counted is a process's first one, which warms up and may compile.
        """
        ahead = (step if self._is_warm else 0.0) + self._validation
        self._is_warm = True
        self.over = self.limit is not None and self.clock() - self.begun + ahead > self.limit
        return self.over


def stopped_early(settings: RunSettings, validations: Sequence[Metrics], measure: Measure) -> str | None:
    """Why a run ends after these validations, by `--early-stop`; None: it goes on."""
    patience = settings.early_stop
    count = since_best(validations, measure) if patience else 0
    if not patience or count < patience:
        return None
    best = min if measure.lower else max
    value = best(value for line in validations if (value := measure.of(line)) is not None)
    return f"--early-stop {patience}: {count} validation{'s' * (count != 1)} without a better {measure.text} than {value:.4f}"

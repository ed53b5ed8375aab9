"""A guard against steps that lie far above the recent ones, and would throw the weights back: they are skipped.

Window and order as in OLMo-core's SkipStepOptimizer: every step, a skipped one too, enters the window after it was judged, so
that one odd batch is skipped and a loss that stays high is not skipped for ever.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from apr_train.errors import RunError
from apr_train.run.folder import STATE

WINDOW = 128
"""Steps that a step is compared with."""
ENOUGH = WINDOW // 2
"""Steps before the first one that may be skipped."""


class SpikeGuard:
    """Judges each step by its loss and its gradient norm; its state is the window.

    Args:
        deviations: how many standard deviations above the mean of the window are too many.
    """

    def __init__(self, deviations: float) -> None:
        self._deviations = deviations
        self._recent = {name: deque[float](maxlen=WINDOW) for name in ("loss", "gradient norm")}

    def judge(self, loss: float, norm: float) -> str | None:
        """Why the step must be skipped, as a clause for people; None: it may be taken. Notes both numbers."""
        told = None
        for (name, recent), value in zip(self._recent.items(), (loss, norm), strict=True):
            told = told or self._spike(name, recent, value)
            recent.append(value)
        return told

    def _spike(self, name: str, recent: deque[float], value: float) -> str | None:
        if len(recent) < ENOUGH:
            return None
        mean, deviation = statistics.fmean(recent), statistics.pstdev(recent)
        if value <= mean + self._deviations * deviation or deviation == 0:
            return None
        far = (value - mean) / deviation
        return f"{name} {value:.4g} is {far:.1f} standard deviations above the mean of the last {len(recent)} ({mean:.4g})"

    def state_dict(self) -> dict[str, list[float]]:
        """The window, as JSON keeps it to the bit."""
        return {name: list(recent) for name, recent in self._recent.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a window of `state_dict`; of a run that had no guard there is none, and it begins empty.

        Raises:
            RunError: for anything else.
        """
        for name, recent in self._recent.items():
            recent.clear()
            recent.extend(_numbers(state.get(name, []), name))


def _numbers(values: Any, name: str) -> Iterable[float]:
    if not isinstance(values, list) or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        problem, where = "not the window of the guard against spikes", f"{STATE} [spikes.{name}]"
        raise RunError(problem, where=where, found=repr(values)[:80])
    return [float(value) for value in values]

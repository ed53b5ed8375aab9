"""The learning rate of each step, as a pure function: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Self

from attrs import frozen

from apr_train.run.settings import OptimizerSettings


@frozen(kw_only=True)
class Schedule:
    """How the learning rate goes over a run."""

    shape: str
    """`cosine`, `linear`, `constant` or `wsd`."""
    steps: int
    """Of the whole run."""
    lr: float
    """The peak."""
    warmup_steps: int
    min_lr_ratio: float
    """Where the rate ends, as a share of the peak."""
    decay_ratio: float
    """wsd: the share of all steps in which the rate falls."""

    @classmethod
    def of(cls, settings: OptimizerSettings, *, steps: int, lr: float, warmup_steps: int) -> Self:
        """The schedule of `[optimizer]`, peak and warm-up decided."""
        return cls(
            shape=settings.schedule,
            steps=steps,
            lr=lr,
            warmup_steps=warmup_steps,
            min_lr_ratio=settings.min_lr_ratio,
            decay_ratio=settings.decay_ratio,
        )

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 1.

        Linear warm-up reaches the peak at step `warmup_steps`; then cosine or linear decay to `min_lr_ratio` of the peak at
        the last step, or constant, or WSD (constant, then a linear fall over the last `decay_ratio` of all steps; Hu et al.
        2024, https://arxiv.org/abs/2404.06395). The same numbers as transformers' schedules at `current_step = step`.
        """
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        return self.lr * self._after_warmup(step)

    def _after_warmup(self, step: int) -> float:
        floor, warmup = self.min_lr_ratio, self.warmup_steps
        progress = min(1.0, (step - warmup) / max(1, self.steps - warmup))
        if self.shape == "cosine":
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.shape == "linear":
            return floor + (1 - floor) * (1 - progress)
        if self.shape == "wsd":
            decay = min(round(self.decay_ratio * self.steps), self.steps - warmup)
            fallen = max(0, step - (self.steps - decay)) / decay if decay > 0 else 0.0
            return floor + (1 - floor) * (1 - min(1.0, fallen))
        return 1.0

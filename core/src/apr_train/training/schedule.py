"""The learning rate of each step, as a pure function: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from apr_train.run.settings import OptimizerSettings


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """The rate of step `step`, counted from 1, in a run of `steps`.

    Linear warm-up reaches the peak at step `warmup_steps`; then cosine or linear decay to `min_lr_ratio` of the peak at
    the last step, or constant, or WSD (constant, then a linear fall over the last `decay_ratio` of all steps; Hu et al.
    2024, https://arxiv.org/abs/2404.06395). The same numbers as transformers' schedules at `current_step = step`.
    """
    peak = settings.lr or 0.0
    warmup = settings.warmup_steps or 0
    if step < warmup:
        return peak * step / warmup
    return peak * _after_warmup(step, steps, warmup, settings)


def _after_warmup(step: int, steps: int, warmup: int, settings: OptimizerSettings) -> float:
    floor = settings.min_lr_ratio
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if settings.schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "linear":
        return floor + (1 - floor) * (1 - progress)
    if settings.schedule == "wsd":
        decay = min(round(settings.decay_ratio * steps), steps - warmup)
        fallen = max(0, step - (steps - decay)) / decay if decay > 0 else 0.0
        return floor + (1 - floor) * (1 - min(1.0, fallen))
    return 1.0

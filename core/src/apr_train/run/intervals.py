"""How far a share that was counted may be from the true one."""

from __future__ import annotations

import math

_Z = 1.959963984540054
"""The 97.5th percentile of the normal distribution: 95 % lie within it on both sides."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score, without a correction for continuity.

    Source: Wilson 1927, as in Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), method 3.

    Args:
        successes: 0 to `trials`.
        trials: at least 1.
    """
    share, square = successes / trials, _Z * _Z
    middle = share + square / (2 * trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    low, high = ((middle + sign * half) / (1 + square / trials) for sign in (-1, 1))
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)

"""32-bit floats as people spell them: 9.999999747378752e-06 was 1e-5 before it was stored in four bytes."""

from __future__ import annotations

import math
import struct


def shortest_f32(value: float) -> float:
    """The decimal with the fewest digits that reads back to the same 32-bit float; nan, inf and overflow are unchanged."""
    if not math.isfinite(value):
        return value
    try:
        stored = struct.pack("<f", value)
    except OverflowError:
        return value
    for digits in range(1, 10):
        candidate = float(f"{value:.{digits}g}")
        if struct.pack("<f", candidate) == stored:
            return candidate
    return value

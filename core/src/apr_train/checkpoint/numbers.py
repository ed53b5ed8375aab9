"""32-bit floats as people spell them: 9.999999747378752e-06 was 1e-5 before it was stored in four bytes."""

from __future__ import annotations

import math
import struct


def shortest_f32(value: float) -> float:
    """The decimal with the fewest digits that reads back to the same 32-bit float; nan, inf and overflow are unchanged."""
    if not math.isfinite(value):
        return value
    stored = _f32_bytes(value)
    if stored is None:
        return value
    for digits in range(1, 10):
        candidate = float(f"{value:.{digits}g}")
        if _f32_bytes(candidate) == stored:
            return candidate
    return value


def _f32_bytes(value: float) -> bytes | None:
    """None for a number that rounds beyond the largest float32, as fewer digits of a number near it may."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return None

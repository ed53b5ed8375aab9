"""Numbers as a person reads them: counts, bytes, times, losses. 1 MB is 10⁶ bytes, 1 GB is 10⁹."""

from __future__ import annotations

import math
import re

from apr_train.errors import ConfigError

NOTHING = "–"
"""Stands for a value that is not known."""


def number(value: float | None, digits: int = 4) -> str:
    """Some significant digits, thousands separated, an exponent where zeros would have to be counted."""
    if value is None:
        return NOTHING
    magnitude = abs(value)
    if 1000 <= magnitude < 1e9:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if 1e-3 <= magnitude < 1000 or value == 0 else _exponent(f"{value:.{digits - 1}g}")


def _exponent(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def count(value: int | None) -> str:
    """`1,234`."""
    return NOTHING if value is None else f"{value:,}"


def loss(value: float | None) -> str:
    """Four decimals: `2.2035`."""
    return NOTHING if value is None else f"{value:.4f}"


def size(value: float | None) -> str:
    """A number of bytes: `1.5 GB`, `2.0 MB`."""
    if value is None:
        return NOTHING
    return f"{value / 1e9:.1f} GB" if value >= 1e8 else f"{value / 1e6:.1f} MB"


_AMOUNT = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?:(?P<unit>[KMGT]i?)B?|B)", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parsed_size(text: str, where: str) -> int:
    """`80GB`, `79.6 GiB`, `80000MB` → bytes; `80G` is `80GB`.

    Raises:
        ConfigError: for anything else, a number without a unit among it, and for nothing at all.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or (amount := float(found["number"])) == 0:
        raise ConfigError("no amount of memory", where=where, expected="such as 80GB or 79.6GiB", found=repr(text))
    unit = (found["unit"] or "").upper()
    base = 1024.0 if unit.endswith("I") else 1000.0
    return round(amount * math.pow(base, _POWERS[unit.rstrip("I")]))


def duration(seconds: float) -> str:
    """A time in seconds: `1 h 02 min`, `3 min 05 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def rate(flops_per_s: float) -> str:
    """Operations a second: `989.5 TFLOP/s`, `87 GFLOP/s`."""
    return f"{flops_per_s / 1e12:,.1f} TFLOP/s" if flops_per_s >= 1e12 else f"{flops_per_s / 1e9:,.0f} GFLOP/s"


def operations(flops: float) -> str:
    """A number of operations: `1.2 GFLOP`, `5.1 MFLOP`."""
    for scale, name in ((1e12, "T"), (1e9, "G")):
        if flops >= scale:
            return f"{flops / scale:,.1f} {name}FLOP"
    return f"{flops / 1e6:,.1f} MFLOP"

"""Symbolic sizes: `4*hidden_size`, `num_attention_heads`, `hidden_size+1`, as the numbers of one config. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def names_of(symbol: str) -> list[str]:
    """The names in a sum of products, numbers left out, in the order in which they stand."""
    terms = [factor.strip() for term in symbol.split("+") for factor in term.split("*")]
    return [term for term in terms if _number(term) is None]


def size_of(symbol: str, sizes: Mapping[str, Any]) -> int | float:
    """`a*b+2*c` for the sizes named a, b and c; a literal may be an integer or a float.

    Raises:
        KeyError: a name that is not among the sizes, or whose size is no number.
    """
    return sum(math.prod(_factor(factor.strip(), sizes) for factor in term.split("*")) for term in symbol.split("+"))


def _factor(text: str, sizes: Mapping[str, Any]) -> int | float:
    number = _number(text)
    if number is not None:
        return number
    value = sizes[text]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KeyError(text)
    return value


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None

"""Symbolic sizes: sums of products of a config's integers and of literals (`3*hidden_size`, `a*b+2*c*b`). Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from apr_train.errors import NameMapError
from apr_train.suggest import did_you_mean

if TYPE_CHECKING:
    from apr_train.family.config import ModelConfig

Shape = tuple[str, ...]
"""Symbolic sizes of a tensor, outermost first: `("num_attention_heads*head_dim", "hidden_size")`."""


def config_sizes(config: ModelConfig) -> dict[str, int]:
    """Every integer field and every integer property of a config: what a symbolic size may name."""
    kind = type(config)
    fields = [item.name for item in attrs.fields(kind)]
    properties = [name for name in dir(kind) if isinstance(getattr(kind, name), property)]
    values = {name: getattr(config, name) for name in [*fields, *properties]}
    return {name: value for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)}


def evaluate(symbol: str, sizes: Mapping[str, Any]) -> int:
    """The number that a symbolic size is, with the given sizes.

    Raises:
        NameMapError: for a name that is no size or has no integer, or a symbol that is no sum of products.
    """
    return sum(math.prod(_factor(factor, symbol, sizes) for factor in term.split("*")) for term in symbol.split("+"))


def _factor(factor: str, symbol: str, sizes: Mapping[str, Any]) -> int:
    name = factor.strip()
    if name.isdecimal():
        return int(name)
    if not name.isidentifier():
        raise NameMapError(f"not a size: {symbol!r} is no sum of products of names and numbers")
    if name not in sizes:
        raise NameMapError(f"unknown size {name} ({did_you_mean(name, sizes)})")
    value = sizes[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise NameMapError(f"unknown size {name}: {value!r} is no integer")
    return value


def names_in(symbol: str) -> tuple[str, ...]:
    """The names in a symbolic size, each once, in order."""
    factors = (factor.strip() for term in symbol.split("+") for factor in term.split("*"))
    return tuple(dict.fromkeys(factor for factor in factors if not factor.isdecimal()))


def solved(symbol: str, value: int) -> tuple[str, int] | None:
    """The one name in a symbolic size and what it is where the whole is `value`: `3*hidden_size` of 72 is 24.

    None where that is not determined: several names, a power of one, or no whole number.
    """
    names = names_in(symbol)
    factors = [[factor.strip() for factor in term.split("*")] for term in symbol.split("+")]
    if len(names) != 1 or any(term.count(names[0]) > 1 for term in factors):
        return None
    slope, rest = 0, 0
    for term in factors:
        number = math.prod(int(factor) for factor in term if factor != names[0])
        slope, rest = (slope + number, rest) if names[0] in term else (slope, rest + number)
    return (names[0], (value - rest) // slope) if slope and (value - rest) % slope == 0 else None


def total(symbols: list[str] | tuple[str, ...]) -> str:
    """The sum of several symbolic sizes; `0` of none."""
    return "+".join(symbols) or "0"

"""Python source of plain values, as `ruff format` would have it: what a template puts into a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH = 120


class Code(str):
    """Source that stands as it is."""

    __slots__ = ()


def literal(value: Any, *, column: int = 0, indent: int = 0) -> str:
    """The value's source: on one line where it fits, else an item a line.

    Args:
        value: text, numbers, None, tuples, lists and tables of them, and `Code`.
        column: where its first line begins, with what stands behind it.
        indent: of the line that it is in.
    """
    line = _one_line(value)
    if column + len(line) <= WIDTH or not isinstance(value, tuple | list | Mapping) or not value:
        return line
    inner, opening, closing = " " * (indent + 4), *_brackets(value)
    items = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            start = f"{_one_line(key)}: "
            items.append(f"{inner}{start}{literal(item, column=indent + 5 + len(start), indent=indent + 4)},")
    else:
        items = [f"{inner}{literal(item, column=indent + 5, indent=indent + 4)}," for item in value]
    return "\n".join([opening, *items, " " * indent + closing])


def call(name: str, arguments: Mapping[str, Any], *, unpacked: tuple[str, ...] = (), indent: int = 0) -> str:
    """A call with an argument a line; `unpacked` are tables behind `**`."""
    inner = " " * (indent + 4)
    lines = [f"{inner}**{table}," for table in unpacked]
    for key, value in arguments.items():
        lines.append(f"{inner}{key}={literal(value, column=indent + 6 + len(key), indent=indent + 4)},")
    return "\n".join([f"{name}(", *lines, " " * indent + ")"])


def _brackets(value: Any) -> tuple[str, str]:
    return ("{", "}") if isinstance(value, Mapping) else ("[", "]") if isinstance(value, list) else ("(", ")")


def _one_line(value: Any) -> str:
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_one_line(key)}: {_one_line(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        opening, closing = _brackets(value)
        comma = "," if len(value) == 1 and isinstance(value, tuple) else ""
        return opening + ", ".join(map(_one_line, value)) + comma + closing
    return _number(value)


def text(value: str) -> str:
    """A string's `repr`, in double quotes where nothing in it has to be escaped for them."""
    source = repr(value)
    return f'"{source[1:-1]}"' if source.startswith("'") and '"' not in source and "\\'" not in source else source


def _number(value: Any) -> str:
    """A number with its thousands apart, where that is the same number."""
    grouped = f"{value:_}" if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) >= 10_000 else ""
    return grouped if grouped and "e" not in grouped and float(grouped) == float(value) else repr(value)

"""What is known of where one prints: a terminal that can be drawn on, its width, and text that breaks at its words."""

from __future__ import annotations

import os
from typing import TextIO

_LEAST = 20
"""Columns; in fewer, lines break where the terminal breaks them."""
_PLAIN = ("dumb", "unknown")


def is_plain() -> bool:
    """Whether terminals get no control sequence of any kind: a dumb one, and every one where `NO_COLOR` is set.

    Source: no-color.org, which asks for no colour.
    """
    return os.environ.get("TERM", "").lower() in _PLAIN or bool(os.environ.get("NO_COLOR"))


def is_drawn_on(stream: TextIO) -> bool:
    """Whether a line can be drawn over: on a terminal that is not plain."""
    return stream.isatty() and not is_plain()


def columns(stream: TextIO) -> int | None:
    """The width of a terminal, or of what `COLUMNS` says of it; None for a file, a pipe, and where nobody knows."""
    if not stream.isatty():
        return None
    if (told := os.environ.get("COLUMNS", "")).isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def broken(text: str, width: int | None, *, indent: int = 0) -> str:
    """The text with a newline at the space before each word that does not fit; a longer word stays whole, to be copied.

    Args:
        text: its own newlines, and the spaces that begin a line, stay.
        width: columns; None: nothing is broken.
        indent: spaces in front of each line that is made, beside those of the line that it continues.
    """
    if width is None or width < _LEAST:
        return text
    return "\n".join(_broken_line(line, width, indent) for line in text.split("\n"))


def _broken_line(line: str, width: int, indent: int) -> str:
    if len(line) <= width and line.isascii():
        return line
    from rich.cells import cell_len

    margin = " " * min(indent + len(line) - len(line.lstrip(" ")), width // 2)
    rows, used = [""], 0
    for word in _words(line):
        needed = cell_len(word.rstrip(" "))
        if used and used + needed > width:
            rows.append(margin)
            used, word = len(margin), word.lstrip(" ")
        rows[-1] += word
        used += cell_len(word)
    return "\n".join(row.rstrip(" ") for row in rows)


def _words(line: str) -> list[str]:
    """The words with the spaces behind them; spaces in front of the first are a part of it."""
    words: list[str] = []
    start = len(line) - len(line.lstrip(" "))
    for piece in line[start:].split(" "):
        if piece or not words:
            words.append(f"{piece} ")
        else:
            words[-1] += " "
    words[0] = line[:start] + words[0]
    words[-1] = words[-1][:-1]
    return words

"""Numbers and HTML as a person reads them; everything that comes from a file is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

NOTHING = "–"


def number(value: float | None, digits: int = 4) -> str:
    """Some significant digits, thousands separated, an exponent where zeros would have to be counted."""
    if value is None:
        return NOTHING
    size = abs(value)
    if size >= 1000 and size < 1e9:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if 1e-3 <= size < 1000 or value == 0 else _exponent(f"{value:.{digits - 1}g}")


def loss(value: float | None) -> str:
    """Four decimals, as the training prints it."""
    return NOTHING if value is None else f"{value:.4f}"


def _exponent(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def count(value: int | None) -> str:
    """`1,234`."""
    return NOTHING if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Bytes as MiB or GiB."""
    if value is None:
        return NOTHING
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 05 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str) -> str:
    """A table whose cells are HTML already; the first one of each row heads it."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """Names and values of a file, escaped."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    return f'<dl class="pairs">{rows}</dl>'


def key(run: int, label: str) -> str:
    """A run's name behind a dash of its colour."""
    return f'<span class="key run-{run % 8}{" again" if run >= 8 else ""}"></span>{escape(label)}'

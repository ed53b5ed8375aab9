"""One panel as HTML: an SVG that stretches to any width, with labels beside it that do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from apr_train.artifact.report.curves import Panel, Point, Series, step_labels, tick_labels, ticks
from apr_train.run.units import number

WIDTH, HEIGHT = 1000, 400
DOTS_UP_TO = 40
"""Points of a series that are few enough to be marked."""


def chart(panel: Panel) -> str:
    """A figure; `page.js` adds what moves."""
    quantity = panel.quantity
    rows = ticks(*panel.values, log=panel.log)
    labels = tick_labels(rows, log=panel.log)
    columns = [step for step in ticks(*_widened(panel.steps)) if step == int(step)]
    scale = ", logarithmic" if panel.log else ""
    return (
        f'<figure class="panel" data-panel="{quantity.key}">'
        f"<figcaption><h3>{escape(quantity.title)}</h3><span>{escape(quantity.unit)}{scale}</span></figcaption>"
        f'<div class="plot" style="--y:{max(map(len, labels), default=0)}">'
        f'<div class="y" aria-hidden="true">{_y_labels(panel, rows, labels)}</div>'
        f'<div class="area"><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(_spoken(panel))}">{"".join(_grid(panel, rows, columns))}{"".join(_curves(panel))}</svg></div>'
        f'<div class="x" aria-hidden="true">{_x_labels(panel, columns)}</div></div></figure>'
    )


def _widened(steps: tuple[int, int]) -> tuple[float, float]:
    first, last = steps
    return (first, last) if last > first else (first - 0.5, last + 0.5)


def _spoken(panel: Panel) -> str:
    ends = "; ".join(f"run {item.run + 1} ends at {number(item.points[-1][1])}" for item in panel.series)
    return f"{panel.quantity.title} by step: {ends}"


def _grid(panel: Panel, rows: Sequence[float], columns: Sequence[float]) -> Iterator[str]:
    lines = [f"M0 {_y(panel, value)}H{WIDTH}" for value in rows] + [f"M{_x(panel, step)} 0V{HEIGHT}" for step in columns]
    yield f'<path class="grid" d="{"".join(lines)}"/>'


def _curves(panel: Panel) -> Iterator[str]:
    for item in panel.series:
        again = " again" if item.run >= 8 else ""
        name = f"run-{item.run % 8}{again}"
        if item.smoothed:
            yield f'<path class="curve faint {name}" data-run="{item.run}" d="{_line(panel, item.points)}"/>'
        yield f'<path class="curve {name}" data-run="{item.run}" d="{_line(panel, item.smoothed or item.points)}"/>'
        if len(item.points) <= DOTS_UP_TO:
            yield f'<path class="dots {name}" data-run="{item.run}" d="{_dots(panel, item)}"/>'


def _line(panel: Panel, points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_x(panel, step)} {_y(panel, value)}" for step, value in points)


def _dots(panel: Panel, item: Series) -> str:
    """Lines of no length with round ends: circles that a stretched picture does not flatten."""
    return "".join(f"M{_x(panel, step)} {_y(panel, value)}h0" for step, value in item.points)


def _x(panel: Panel, step: float) -> str:
    return f"{panel.x(step) * WIDTH:.1f}".removesuffix(".0")


def _y(panel: Panel, value: float) -> str:
    return f"{panel.y(value) * HEIGHT:.1f}".removesuffix(".0")


def _y_labels(panel: Panel, rows: Sequence[float], labels: Sequence[str]) -> str:
    pairs = zip(rows, labels, strict=True)
    return "".join(f'<span style="top:{panel.y(value) * 100:.2f}%">{label}</span>' for value, label in pairs)


def _x_labels(panel: Panel, columns: Sequence[float]) -> str:
    pairs = zip(columns, step_labels(columns), strict=True)
    return "<i>step</i>" + "".join(f'<span style="left:{panel.x(step) * 100:.2f}%">{label}</span>' for step, label in pairs)

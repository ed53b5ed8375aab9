"""The curves as a picture, with matplotlib, which is an optional part of the installation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from apr_train.artifact.report.curves import Panel, panels
from apr_train.atomic import write_file
from apr_train.errors import ConfigError
from apr_train.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2563eb", "#e8590c", "#0b8a4b", "#c2255c", "#7048e8", "#0b7f93", "#946800", "#59636d")
"""As on the page."""
_COLUMNS = 2


def require_matplotlib() -> None:
    """Say how to install it where it is missing.

    Raises:
        ConfigError: it is missing.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "a picture takes matplotlib, which is not installed",
            where="--png",
            hint='Install it with pip install "apr-train[report]", or write a page with -o report.html.',
        )


def write_png(records: Sequence[Record], path: Path) -> None:
    """Draw every panel of the page; the same runs give the same picture.

    Raises:
        ConfigError: matplotlib is missing.
        OutputError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = panels(records)
    rows = -(-len(drawn) // _COLUMNS)
    figure = Figure(figsize=(12, 3.4 * rows + 0.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for panel, axis in zip(drawn, axes, strict=False):
        _draw(panel, axis)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    handles = [axes[0].plot([], [], color=_colour(run), linestyle=_style(run), lw=2)[0] for run in range(len(records))]
    labels = [record.label.replace("$", r"\$") for record in records]
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": "apr-train"})
    write_file(path, buffer.getvalue())


def _draw(panel: Panel, axis: Axes) -> None:
    for item in panel.series:
        colour, marker = _colour(item.run), "o" if len(item.points) <= 40 else ""
        steps, values = zip(*item.points, strict=True)
        if item.smoothed:
            axis.plot(steps, values, color=colour, alpha=0.25, lw=0.8)
            steps, values = zip(*item.smoothed, strict=True)
        axis.plot(steps, values, color=colour, linestyle=_style(item.run), marker=marker, ms=3.5, lw=1.8)
    if panel.log:
        axis.set_yscale("log")
    axis.set_ylim(*panel.values)
    axis.set_title(panel.quantity.title, loc="left", fontsize=11, fontweight="bold")
    axis.set_ylabel(panel.quantity.unit, fontsize=9)
    axis.set_xlabel("step", fontsize=9)
    axis.grid(color="#e8e6e1", lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def _colour(run: int) -> str:
    return COLOURS[run % len(COLOURS)]


def _style(run: int) -> str:
    return "-" if run < len(COLOURS) else "--"

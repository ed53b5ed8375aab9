"""A progress bar for work that turns out to be long, on a terminal only; anywhere else, silence."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DELAY = 1.0
"""Seconds before a bar appears: short work shows none."""


@contextmanager
def progress_bar(description: str, total: int | None = None, *, unit: str = "B") -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how much more has been done; draws on stderr.

    `unit` `B` counts bytes, with sizes and speed; anything else is a plain count. `total` None: of unknown length.
    """
    if not sys.stderr.isatty():
        yield _silent
        return
    bar = _DelayedBar(description, total, unit)
    try:
        yield bar.advance
    finally:
        bar.stop()


def _silent(count: int) -> None:
    """There is no terminal to draw on."""


class _DelayedBar:
    """Imports rich and draws only when the work has lasted a second."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._start = time.monotonic()
        self._done = 0
        self._stop: Callable[[], None] | None = None
        self._update: Callable[[int], None] = _silent

    def advance(self, count: int) -> None:
        """Account for `count` more."""
        self._done += count
        if self._stop is None and time.monotonic() - self._start >= DELAY:
            self._appear()
        self._update(self._done)

    def _appear(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (DownloadColumn(), TransferSpeedColumn()) if self._unit == "B" else (MofNCompleteColumn(),)
        bar = Progress(
            "{task.description}", BarColumn(), *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
        )
        task = bar.add_task(self._description, total=self._total)
        bar.start()
        self._stop = bar.stop
        self._update = lambda done: bar.update(task, completed=done)

    def stop(self) -> None:
        """Take the bar away."""
        if self._stop is not None:
            self._stop()

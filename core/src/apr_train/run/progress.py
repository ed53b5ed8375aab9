"""Progress bars for counted work that turns out to be long: on a terminal only, on stderr; anywhere else, silence."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

from apr_train.errors import printable
from apr_train.run.terminal import columns, is_drawn_on

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

DELAY = 1.0
"""Seconds before a bar appears: short work shows none."""


@contextmanager
def doing(what: str, *, shown: bool = True) -> Iterator[None]:
    """Say on a terminal what is being done, as long as it is: the line is gone afterwards. Nothing else may print meanwhile."""
    stream = sys.stderr
    if not shown or not is_drawn_on(stream):
        yield
        return
    room = (columns(stream) or 80) - 1  # what fills the last column as well may wrap
    text = f"{what} …"
    stream.write(text if len(text) <= room else f"{text[: room - 1]}…")
    stream.flush()
    try:
        yield
    finally:
        stream.write("\r\x1b[K")  # back to its beginning, and erase to its end (ECMA-48)
        stream.flush()


@contextmanager
def progress_bar(description: str, total: int | None = None, *, unit: str = "B") -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how much more has been done.

    Args:
        description: what stands before the bar.
        total: how much there is to do; None: of unknown length.
        unit: `B` counts bytes, with sizes and speed; anything else is a plain count.
    """
    if not is_drawn_on(sys.stderr):
        yield _silent
        return
    bar = _DelayedBar(description, total, unit)
    try:
        yield bar.advance
    finally:
        bar.stop()


@contextmanager
def no_bar(description: str, total: int | None = None, *, unit: str = "B") -> Iterator[Callable[[int], None]]:
    """What `progress_bar` is where nothing shall be drawn."""
    yield _silent


Bar = Callable[..., AbstractContextManager[Callable[[int], None]]]
"""`progress_bar` or `no_bar`."""


@contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield what the data path reports to, (stage, bytes done, bytes in all): one bar after another, a stage each.

    Yields None where there is no terminal, so that nothing is counted for nobody.
    """
    if not is_drawn_on(sys.stderr):
        yield None
        return
    with ExitStack() as shown:
        current, counted = "", 0
        advance: Callable[[int], None] = _silent

        def report(stage: str, done: int, total: int) -> None:
            nonlocal current, counted, advance
            if stage != current:
                shown.close()
                current, counted, advance = stage, 0, shown.enter_context(progress_bar(stage, total))
            advance(done - counted)
            counted = done

        yield report


def _silent(count: int) -> None:
    """There is no terminal to draw on, or nobody wants to see anything."""


class _DelayedBar:
    """Imports rich and draws only when the work has lasted a second."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._description, self._total, self._unit = printable(description), total, unit
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
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), *_counters(self._unit), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task(self._description, total=self._total)
        bar.start()
        self._stop = bar.stop
        self._update = lambda done: bar.update(task, completed=done)

    def stop(self) -> None:
        """Take the bar away."""
        if self._stop is not None:
            self._stop()


def _counters(unit: str) -> tuple[ProgressColumn, ...]:
    from rich.progress import DownloadColumn, MofNCompleteColumn, TransferSpeedColumn

    return (DownloadColumn(), TransferSpeedColumn()) if unit == "B" else (MofNCompleteColumn(),)

"""A polite stop: the first SIGINT or SIGTERM ends the run after the step, the second one at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which the first signal only sets `name`; on leaving, the old handlers are back.

    The handler that counts is the process's own, so that a second signal does what it would have done without us:
    KeyboardInterrupt, or the end of the process.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """The signal that asked to stop, such as `SIGINT`; None as long as nobody did."""
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread only; a host application keeps its own handlers
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

"""A polite stop: the first SIGINT, SIGTERM or SIGHUP ends the run after the step, another one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """A context in which the first signal only sets `name`; on leaving, the old handlers are back.

    The handler that counts is the process's own, so that a second signal does what it would have done without us:
    KeyboardInterrupt, or the end of the process. Only SIGHUP stays caught: a terminal that closes sends it twice.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
        """`signals`: those that ask to stop; none where a host application keeps its own handlers."""
        self._signals = tuple(signals)
        self.name: str | None = None
        """The signal that asked to stop, such as `SIGINT`; None as long as nobody did."""
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread only; a host application keeps its own handlers
        self._before = {number: signal.signal(number, self._note) for number in self._signals if not _is_unwanted(number)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore(*SIGNALS)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        self._restore(signal.SIGINT, signal.SIGTERM)

    def _restore(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))


def _is_unwanted(number: signal.Signals) -> bool:
    """Under nohup a closing terminal must not stop the run."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN

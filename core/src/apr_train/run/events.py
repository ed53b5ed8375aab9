"""What a run tells while it goes: the protocol that a display, a logger or a tracker implements. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from apr_train.run.metrics import Metrics

Say = Callable[[str], None]
"""Called with one sentence for the user."""


class RunEvents(Protocol):
    """Told of a run's events by the training loop; a context manager around all of its steps."""

    def say(self, text: str) -> None:
        """Take one message that stays."""
        ...

    def step(self, line: Metrics) -> None:
        """Take a finished step, or the validation before the first one (step 0)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

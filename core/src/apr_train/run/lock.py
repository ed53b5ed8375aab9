"""One process at a time writes into a run's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apr_train.errors import OutputError, RunError

FILE = ".lock"


class InUseError(RunError):
    """A folder that a new run cannot have: it holds something, or another process is training in it."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the system lets go of it when the process ends, however it ends.

    Raises:
        InUseError: when another process trains in it.
        OutputError: when there can be no lock in it.
    """
    try:
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        problem = f"the run's folder cannot be locked ({error.strerror})"
        raise OutputError(problem, where=folder / FILE, hint="Check the path and its permissions.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "Wait for it to end, or take another --run."
            raise InUseError("another process is training in this folder", where=folder, hint=hint) from error
        yield
    finally:
        os.close(descriptor)

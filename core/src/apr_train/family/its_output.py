"""A plugin as a guest: what it prints goes to standard error, for standard output belongs to the command."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

_STDOUT, _STDERR = 1, 2


@contextmanager
def as_guest() -> Iterator[None]:
    """Run a plugin's code: what it prints goes to standard error, and a working folder that it changes is changed back."""
    with same_folder(), printed_on_stderr():
        yield


@contextmanager
def same_folder() -> Iterator[None]:
    """Go back into the working folder at the end: paths on the command line and in settings are relative to the user's."""
    here = _open_here()
    try:
        yield
    finally:
        if here is not None:
            os.fchdir(here)
            os.close(here)


def _open_here() -> int | None:
    """The working folder; None where it cannot be opened: it was removed, or may not be read."""
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


@contextmanager
def printed_on_stderr() -> Iterator[None]:
    """Send what is printed inside, from Python or by the descriptor, as C does, to standard error."""
    with suppress(OSError, ValueError):  # nobody reads it, or it is closed: the command finds out when it prints itself
        sys.stdout.flush()
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # there is no standard output
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        with suppress(OSError):
            os.dup2(_STDERR, _STDOUT)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C still holds back would come out later, and elsewhere
        os.dup2(kept, _STDOUT)
        os.close(kept)

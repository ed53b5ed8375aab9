"""What a plugin prints: it goes to standard error, for standard output belongs to the command."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

_STDOUT, _STDERR = 1, 2


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

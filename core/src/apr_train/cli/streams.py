"""The standard streams, where one of them is closed, its reader goes away, its disk is full, or it lacks a letter.

The output is not the result: a command goes on without it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}
"""In the order of their descriptors: an opened file gets the lowest that is free."""


def open_closed_streams() -> None:
    """Put the null device in place of each closed stream: what is printed is lost, and no file that is opened later gets it.

    Python has None for such a stream, which cannot be asked whether it is a terminal; and a checkpoint that got descriptor 1
    would take what a library prints.
    """
    for name, mode in _MODES.items():
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))


class _Patient(io.RawIOBase):
    """A descriptor that takes what is written, also when nobody does any more; `lost` is then the reason."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.lost: OSError | None = None

    def writable(self) -> bool:
        """It is there to be written to."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write what the descriptor takes; all of it is taken once it was lost."""
        if self.lost is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                raise
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


class Streams:
    """Standard output and standard error that a command can print to, whatever becomes of them."""

    def __init__(self) -> None:
        open_closed_streams()
        self._own = (sys.stdout, sys.stderr)  # whose end would close the descriptors
        self._out = self._replace("stdout")
        self._replace("stderr")

    @staticmethod
    def _replace(name: str) -> _Patient | None:
        """Put a patient stream in the place of the process's own; None where something else stands there, as in a test."""
        old = getattr(sys, name)
        try:
            raw = _Patient(old.fileno())
            old.flush()
        except (OSError, ValueError, AttributeError):
            return None
        buffered = io.BufferedWriter(raw)
        errors = "backslashreplace"  # a terminal that has no arrow gets its number
        text = io.TextIOWrapper(buffered, encoding=old.encoding, errors=errors, line_buffering=name == "stderr" or raw.isatty())
        setattr(sys, name, text)
        return raw

    def close(self, code: int, *, trains: bool) -> int:
        """Say what became of standard output; returns the exit status.

        A reader that has enough (`| head`) is no fault. Where a disk is full, output that is all there is has failed.
        """
        sys.stdout.flush()
        lost = None if self._out is None else self._out.lost
        if lost is not None and (trains or lost.errno != errno.EPIPE):
            sys.stderr.write(f"Standard output was lost ({lost.strerror}), and nothing else.\n")
            code = code if trains else code or 1
        sys.stderr.flush()
        return code

"""The standard streams, where whoever started the process closed one of them (`>&-`)."""

from __future__ import annotations

import os
import sys

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

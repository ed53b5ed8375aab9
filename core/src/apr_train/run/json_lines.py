"""JSON lines: a file of one JSON value a line, whose last line a crash may have cut off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apr_train.checkpoint.files import json_value, open_regular, refuse_larger
from apr_train.errors import FormatError, RunError

MAX_LINES_BYTES = 1 << 30
"""Bound on such a file: a line of metrics has 300 bytes, and a run a million steps at most."""


def read_json_lines(path: Path, *, most: int = MAX_LINES_BYTES) -> Iterator[Any]:
    """The values of all whole lines, one after the other; a last line without its newline is left out.

    Raises:
        RunError: the file is not there or has more than `most` bytes, or a line is not JSON in UTF-8; the message gives its
            number, counted from 1.
    """
    for number, line in enumerate(_lines(path, most), 1):
        yield _value(line, number, path)


def _lines(path: Path, most: int) -> Iterator[bytes]:
    """The whole lines of what the file has when it is opened: what is appended meanwhile is left for the next reader."""
    try:
        with open_regular(path) as file:
            left = os.fstat(file.fileno()).st_size
            refuse_larger(left, path, most=most)
            while (line := file.readline(left)).endswith(b"\n"):
                left -= len(line)
                yield line[:-1]
    except FormatError as error:
        raise RunError.of(error.findings) from error
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=path) from error


def _value(line: bytes, number: int, path: Path) -> Any:
    try:
        return json_value(line.decode("utf-8"), path, half_pairs=True)
    except UnicodeDecodeError as error:
        raise RunError(f"line {number} is not UTF-8", where=path, found=f"byte {error.start} of the line") from error
    except FormatError as error:
        raise RunError(f"line {number} is not JSON that can be read: {error.finding.problem}", where=path) from error

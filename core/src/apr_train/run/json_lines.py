"""JSON lines: a file of one JSON value a line, whose last line a crash may have cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apr_train.checkpoint.files import json_value, read_bytes
from apr_train.errors import FormatError, RunError

MAX_LINES_BYTES = 1 << 30
"""Bound on such a file: a line of metrics has 300 bytes, and a run a million steps at most."""


def read_json_lines(path: Path) -> list[Any]:
    """The values of all whole lines, in order; a last line without its newline is left out.

    Raises:
        RunError: the file is not there, or a line is not JSON in UTF-8; the message gives its number, counted from 1.
    """
    try:
        lines = read_bytes(path, most=MAX_LINES_BYTES).split(b"\n")[:-1]
    except FormatError as error:
        raise RunError.of(error.findings) from error
    return [_value(line, number, path) for number, line in enumerate(lines, 1)]


def _value(line: bytes, number: int, path: Path) -> Any:
    try:
        return json_value(line.decode("utf-8"), path, half_pairs=True)
    except UnicodeDecodeError as error:
        raise RunError(f"line {number} is not UTF-8", where=path, found=f"byte {error.start} of the line") from error
    except FormatError as error:
        raise RunError(f"line {number} is not JSON that can be read: {error.finding.problem}", where=path) from error

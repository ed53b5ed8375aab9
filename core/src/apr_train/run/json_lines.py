"""JSON lines: a file of one JSON value a line, whose last line a crash may have cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apr_train.errors import RunError


def read_json_lines(path: Path) -> list[Any]:
    """The values of all whole lines, in order; a last line without its newline is left out.

    Raises:
        RunError: the file is not there, or a line is not JSON in UTF-8; the message gives its number, counted from 1.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunError("cannot be read", where=path, found=error.strerror) from error
    return [_value(line, number, path) for number, line in enumerate(lines, 1)]


def _value(line: bytes, number: int, path: Path) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RunError(f"line {number} is not UTF-8", where=path, found=f"byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        raise RunError(f"line {number} is not JSON: {error.msg}", where=path) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in a list in a list …
        raise RunError(f"line {number} is not JSON that can be read", where=path, found=error) from error

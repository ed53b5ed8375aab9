"""A file of a run that holds one JSON object: written whole, and read back as a value that was checked, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs

from apr_train.atomic import write_file
from apr_train.checkpoint.files import parse_json
from apr_train.errors import FormatError, RunError

T = TypeVar("T")


def write_object(path: Path, value: attrs.AttrsInstance) -> None:
    """Write an attrs value as JSON.

    Raises:
        OutputError: the file cannot be written; it is then as it was.
    """
    write_file(path, f"{json.dumps(attrs.asdict(value), indent=1)}\n".encode())


def read_object(path: Path, checked: Callable[[dict[str, Any]], T], *, problem: str, hint: str) -> T | None:
    """Read what `write_object` wrote; None if there is no file.

    Args:
        path: the file.
        checked: the value of a file's object; ValueError, TypeError or KeyError where that is another one.
        problem: what a file is that is damaged, for the message.
        hint: what to do then.

    Raises:
        RunError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return checked(parse_json(path))
    except (FormatError, ValueError, TypeError, KeyError) as error:  # no JSON, other keys, other types
        raise RunError(problem, where=path, found=str(error) or type(error).__name__, hint=hint) from error

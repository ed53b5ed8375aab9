"""profile/items.json: where the time of the traced steps went, as the report shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from apr_train.atomic import write_file
from apr_train.checkpoint.files import parse_json
from apr_train.errors import FormatError, RunError

ITEMS, TRACE, MEMORY = "items.json", "trace.json.gz", "memory.json.gz"
"""In the folder `profile`; the last of a CUDA device only."""
_HINT = "Move the file away: the report leaves the profile out."


@frozen(kw_only=True)
class ProfileItem:
    """An operator or a kernel, over all traced steps."""

    name: str
    calls: int
    seconds: float
    """Its own, without what it called."""


@frozen(kw_only=True)
class ProfileRecord:
    """What a trace comes to."""

    first: int
    last: int
    """The traced steps."""
    clock: str
    """`cpu` or `cuda`: whose seconds these are."""
    seconds: float
    """Of all operators together."""
    items: tuple[ProfileItem, ...] = field(repr=False)
    """The largest first."""


def write_profile(path: Path, record: ProfileRecord) -> None:
    """Write it as JSON.

    Raises:
        OutputError: the file cannot be written; it is then as it was.
    """
    write_file(path, f"{json.dumps(attrs.asdict(record), indent=1)}\n".encode())


def read_profile(path: Path) -> ProfileRecord | None:
    """Read what `write_profile` wrote; None if there is no file.

    Raises:
        RunError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return _checked(parse_json(path))
    except (FormatError, ValueError, TypeError, KeyError) as error:  # no JSON, other keys, other types
        raise RunError("this is no profile", where=path, found=str(error) or type(error).__name__, hint=_HINT) from error


def _checked(values: dict[str, Any]) -> ProfileRecord:
    """The record of a file's values; ValueError, TypeError or KeyError where these are others."""
    record = ProfileRecord(**{**values, "items": tuple(ProfileItem(**item) for item in values["items"])})
    numbers = [record.first, record.last, record.seconds]
    numbers += [number for item in record.items for number in (item.calls, item.seconds)]
    names = [record.clock, *(item.name for item in record.items)]
    if not all(isinstance(number, int | float) for number in numbers) or not all(isinstance(name, str) for name in names):
        raise TypeError("a number or a name is of another type")
    return record

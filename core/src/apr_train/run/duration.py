"""Lengths of time as a user writes them: `90s`, `30m`, `1h30m`."""

from __future__ import annotations

import re

from apr_train.errors import ConfigError

_UNITS = {"h": 3600, "m": 60, "s": 1}
_WRITTEN = re.compile(r"(?:(?P<h>\d{1,6})h)?(?:(?P<m>\d{1,6})m)?(?:(?P<s>\d{1,6})s?)?", re.ASCII)


def seconds(text: str) -> int:
    """`1h30m` → 5400; a number alone is seconds.

    Raises:
        ConfigError: for anything else.
    """
    match = _WRITTEN.fullmatch(text)
    parts = {} if match is None else {unit: int(number) for unit, number in match.groupdict().items() if number is not None}
    if not parts:
        raise ConfigError("not a length of time", expected="90s, 30m or 1h30m", found=repr(text))
    return sum(number * _UNITS[unit] for unit, number in parts.items())

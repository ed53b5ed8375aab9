"""`--profile FIRST:LAST`: the steps of a run whose trace is kept, both included."""

from __future__ import annotations

import re

from attrs import frozen

from apr_train import rules
from apr_train.errors import ConfigError

FLAG = "--profile"
_WINDOW = re.compile(r"(\d{1,12}):(\d{1,12})", re.ASCII)
MOST = 100
"""Steps: a trace of a step of a small model is a megabyte, packed, and all of it is in memory until the last one."""


@frozen
class ProfileWindow:
    """The first and the last step that are traced."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> ProfileWindow:
        """Read `10:13`.

        Raises:
            ConfigError: PROFILE-001 for anything else, a window that ends before it begins, and one that is too long.
        """
        found = _WINDOW.fullmatch(text)
        if found is None:
            raise _refused("no steps to trace", "FIRST:LAST, such as 10:13", text)
        window = cls(int(found[1]), int(found[2]))
        if not 1 <= window.first <= window.last:
            raise _refused("no steps to trace", "FIRST of at least 1, and LAST not before it", text)
        if window.last - window.first >= MOST:
            raise _refused("too many steps to trace", f"at most {MOST}", text)
        return window


def _refused(problem: str, expected: str, found: str) -> ConfigError:
    return ConfigError(problem, rule=rules.PROFILE_001, where=FLAG, expected=expected, found=found)

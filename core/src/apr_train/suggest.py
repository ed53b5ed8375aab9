"""The closest known name, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or the list of what is known."""
    options = sorted(known)
    near = closest(name, options)
    if near is not None:
        return f"did you mean {near}?"
    return f"known: {', '.join(options)}" if options else "nothing is known"

"""The closest known name, for messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """`did you mean X?`, or None if nothing is near: for messages that list what is known anyway."""
    near = closest(name, sorted(known))
    return None if near is None else f"did you mean {near}?"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or the list of what is known."""
    options = sorted(known)
    near = nearest(name, options)
    if near is not None:
        return near
    return f"known: {', '.join(options)}" if options else "nothing is known"


class ClosestTensor:
    """The closest of many tensor names, of the same layer and expert if it has one.

    Names are compared without their numbers and each such stem once: with 64 layers on both sides, comparing every
    name with every other would take most of a minute.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._known = set(known)
        self._stems = {_stem(name): name for name in sorted(self._known)}
        self._layers = {(_stem(name), tuple(_NUMBER.findall(name)[:1])): name for name in sorted(self._known)}
        self._found: dict[str, str | None] = {}

    def __call__(self, name: str) -> str | None:
        """The nearest known name, or None if nothing is near."""
        stem = _stem(name)
        if stem not in self._found:
            self._found[stem] = closest(stem, self._stems)
        near = self._found[stem]
        if near is None:
            return None
        numbers = _NUMBER.findall(name)
        rest = iter(numbers)
        sibling = re.sub("#", lambda mark: next(rest, "#"), near)
        return sibling if sibling in self._known else self._layers.get((near, tuple(numbers[:1])), self._stems[near])


def _stem(name: str) -> str:
    return _NUMBER.sub("#", name)

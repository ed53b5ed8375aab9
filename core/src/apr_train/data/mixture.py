"""Which source the next row comes from: each has its share of every prefix, to less than a row.

The chairman assignment of Tijdeman (1980, Discrete Mathematics 32, "The chairman assignment problem"): of the sources that
are due, the one whose deadline comes first. After every row each of k sources has had its share of the rows so far, give or
take 1 − 1/(2k − 2) of one; taking the largest deficit, which seems to do, may be off by more. Integers only, so that the
order is the same on every machine. It has the period of the shares: any thousand rows in a row hold exactly 700 of a source
of weight 0.7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm

from attrs import frozen


def whole_weights(weights: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers in the same proportion."""
    common = lcm(*(weight.denominator for weight in weights))
    numbers = [int(weight * common) for weight in weights]
    return [number // gcd(*numbers) for number in numbers]


class Turns:
    """Whose turn it is, among sources that do not end."""

    def __init__(self, weights: Mapping[str, int], had: Mapping[str, int] | None = None) -> None:
        """`weights`: above zero; `had`: the rows that each has had in this order, for one that goes on."""
        self.had = {name: 0 if had is None else had[name] for name in weights}
        self._weights = dict(weights)
        self._total = sum(weights.values())
        self._scale = max(1, 2 * len(weights) - 2)

    @property
    def period(self) -> int:
        """After so many rows, and each multiple of them, every source has had its share exactly."""
        return self._total

    def next(self) -> str:
        """Give the next row to a source."""
        rows = sum(self.had.values()) + 1
        chosen = None
        for name, weight in self._weights.items():
            due = (weight * rows - self.had[name] * self._total) * self._scale >= self._total or len(self._weights) == 1
            if due and (chosen is None or self._comes_before(name, chosen)):
                chosen = name
        if chosen is None:
            raise ArithmeticError("no source is due: the weights are no positive integers")
        self.had[chosen] += 1
        return chosen

    def _comes_before(self, name: str, other: str) -> bool:
        """Whether a source must have had one more earlier than another one must."""
        own, others = (self.had[item] * self._scale + self._scale - 1 for item in (name, other))
        return own * self._weights[other] < others * self._weights[name]


@frozen
class End:
    """A source that has had all its epochs."""

    name: str
    row: int
    """The rows of all sources so far, its last one included."""


class Mixture:
    """Whose turn it is, among sources some of which end; the others then share the part of the one that did.

    Its state is the number of rows that each source has had since the last end.
    """

    def __init__(self, weights: Mapping[str, int], limits: Mapping[str, int | None]) -> None:
        """`limits`: rows in all that a source has; None for one that goes on."""
        self._weights, self._limits = dict(weights), dict(limits)
        self.had = dict.fromkeys(weights, 0)
        self.ends: list[End] = []
        self._turns = Turns(self._weights)

    @property
    def rows(self) -> int | None:
        """All rows that there are; None: there is no end."""
        limits = [limit for limit in self._limits.values() if limit is not None]
        return sum(limits) if len(limits) == len(self._limits) else None

    def next(self) -> str:
        """Give the next row to a source.

        Raises:
            IndexError: when all sources have ended.
        """
        if not self._turns.had:
            raise IndexError("every source has ended")
        name = self._turns.next()
        self._had(name, 1)
        return name

    def state_dict(self) -> dict[str, int]:
        """Rows of the sources that go on, since the last end; what ended before is told by the rows of each."""
        return dict(self._turns.had)

    def load(self, had: Mapping[str, int], since: Mapping[str, int]) -> None:
        """Go to where each source has had so many rows, `since` the last end as `state_dict` gave them.

        Raises:
            ValueError: when that is nowhere on the way.
        """
        going = {name: weight for name, weight in self._weights.items() if had[name] != self._limits[name]}
        beyond = any(limit is not None and had[name] > limit for name, limit in self._limits.items())
        if beyond or since.keys() != going.keys() or any(since[name] > had[name] for name in going):
            raise ValueError("no position on the way")
        self.had = dict(had)
        self._turns = Turns(going, {name: since[name] for name in going})

    def ends_until(self, rows: int) -> list[End]:
        """The sources that end within so many rows from the start, in order; this mixture stays where it is."""
        trial = Mixture(self._weights, self._limits)
        while (done := sum(trial.had.values())) < rows and trial._turns.had and not trial._endless():
            trial._skip(rows - done)
            if sum(trial.had.values()) < rows and trial._turns.had:
                trial.next()
        return trial.ends

    def _endless(self) -> bool:
        return all(self._limits[name] is None for name in self._turns.had)

    def _skip(self, most: int) -> None:
        """Go as many whole periods on as surely no source ends in."""
        turns = self._turns
        if any(count * turns.period != self._weights[name] * sum(turns.had.values()) for name, count in turns.had.items()):
            return
        left = {name: limit - self.had[name] for name, limit in self._limits.items() if name in turns.had and limit is not None}
        periods = min([most // turns.period, *((rooms - 1) // self._weights[name] for name, rooms in left.items())])
        for name in list(turns.had) if periods > 0 else []:
            turns.had[name] += periods * self._weights[name]
            self.had[name] += periods * self._weights[name]

    def _had(self, name: str, rows: int) -> None:
        self.had[name] += rows
        if self.had[name] == self._limits[name]:
            self.ends.append(End(name, sum(self.had.values())))
            self._turns = Turns({other: self._weights[other] for other in self._turns.had if other != name})

"""Batches from tokens: shuffled, mixed and endless for training, fixed and finite for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from math import floor
from typing import Any

import numpy as np
from attrs import evolve, frozen

from apr_train.data.batch import Batch, RowOptions, Rows, Share
from apr_train.data.mixture import End, Mixture, whole_weights
from apr_train.data.objectives import Objective, keeps_documents_apart
from apr_train.data.packing import implies_document_mask
from apr_train.data.protocols import TokenizerLike
from apr_train.data.tokens import TokenFile
from apr_train.errors import ConfigError, DataError, RunError
from apr_train.run.objective_names import Packing

_VALIDATION_SEED = 0
_INTEGER_LIMIT = 1 << 63


@frozen(kw_only=True)
class StreamSource:
    """The tokens of one source, and its part."""

    name: str | None = None
    """None for the only source, which nobody named."""
    tokens: TokenFile
    weight: Fraction | None = None
    """Its share of the rows by the sum of all weights; None for all: by the rows that each has."""
    max_epochs: int | None = None
    """How often it is gone through at most; None: as often as there are batches."""


def _each(sources: TokenFile | Sequence[StreamSource]) -> Sequence[StreamSource]:
    return [StreamSource(tokens=sources)] if isinstance(sources, TokenFile) else sources


def source_seed(seed: int, name: str | None) -> int:
    """The seed of what is drawn for a source: the run's own where it has no name, else one that another name changes."""
    if name is None:
        return seed
    return int.from_bytes(blake2b(f"{seed} {name}".encode(), digest_size=8, person=b"apr-source").digest(), "little") >> 1


class BatchStream:
    """A stream of training batches, every row of a source once an epoch, in an order that seed, name and epoch decide.

    Whose row comes next is `data.mixture`'s: of any thousand rows each source has its share. The stream has no end, unless
    every source has a number of epochs that it is gone through at most.

    The position counts rows, not batches, so that it means the same for every batch size (a run's own is fixed at its
    start). A batch at an epoch's end takes its last rows from the next epoch.
    """

    def __init__(
        self,
        sources: TokenFile | Sequence[StreamSource],
        *,
        objective: Objective,
        sequence_length: int,
        batch_size: int,
        seed: int,
        tokenizer: TokenizerLike,
        document_mask: bool = False,
        mask_probability: float = 0.15,
        packing: Packing = "concatenate",
        share: Share | None = None,
        on_epoch: Callable[[int], None] | None = None,
        on_source: Callable[[str, int, bool], None] | None = None,
    ) -> None:
        """A stream at its beginning.

        Args:
            sources: each with a name, unless it is the only one; tokens alone are that.
            objective: cuts tokens into rows.
            sequence_length: tokens in a row.
            batch_size: rows in a batch.
            seed: of the order, and of what the objective draws.
            tokenizer: gives the special tokens that the objective needs.
            document_mask: whether attention stays inside documents.
            mask_probability: share of the tokens to predict, of an objective that hides some.
            packing: how documents come into rows.
            share: which rows of each batch are given, to one of several processes; all of them otherwise.
            on_epoch: called with the number of whole epochs done, each time that one is, of a source without a name.
            on_source: of sources with names: called with the name, its whole epochs, and whether it has ended with that.

        Raises:
            ConfigError: for an impossible length, batch size or seed.
            DataError: when a source is too small for one row.
            TokenizerError: when the tokenizer lacks a special token that the objective needs.
        """
        _require_at_least("batch_size", batch_size, 1)
        _require_at_least("seed", seed, 0)
        options = RowOptions(
            length=sequence_length,
            document_mask=document_mask,
            tokenizer=tokenizer,
            mask_probability=mask_probability,
            seed=seed,
            partial=False,
            packing=packing,
        )
        self._sources = {item.name or "": _SourceRows(item, objective, options) for item in _each(sources)}
        weights = {name: item.weight for name, item in self._sources.items()}
        self._mixture = Mixture(
            dict(zip(weights, whole_weights(list(weights.values())), strict=True)),
            {name: item.limit for name, item in self._sources.items()},
        )
        self._batch_size, self._length = batch_size, sequence_length
        self._own = (share or Share()).rows(batch_size)
        self._on_epoch, self._on_source = on_epoch, on_source
        self._identity = {
            "objective": objective.name,
            "sequence_length": sequence_length,
            "seed": seed,
            "document_mask": document_mask,
            "mask_probability": mask_probability,
            "packing": packing,
        }

    @property
    def told(self) -> str | None:
        """What a user should know of how documents came into rows; None where there is nothing."""
        told = {name: item.rows.told for name, item in self._sources.items()}
        return "; ".join(f"{name}: {text}" if name else text for name, text in told.items() if text is not None) or None

    @property
    def epoch(self) -> int:
        """Whole epochs done, of the source that has done the fewest."""
        return min(item.epoch for item in self._sources.values())

    @property
    def rows(self) -> int | None:
        """All rows that there are; None: there is no end."""
        return self._mixture.rows

    @property
    def rows_read(self) -> int:
        """Rows that were given so far, of all sources."""
        return sum(item.had for item in self._sources.values())

    @property
    def tokens_read(self) -> dict[str, int]:
        """Tokens in the rows of each source so far; none for a source without a name."""
        return {name: self._mixture.had[name] * self._length for name in self._sources if name}

    @property
    def epochs_read(self) -> dict[str, float]:
        """How often each source was gone through; none for a source without a name."""
        return {name: item.had / len(item.rows) for name, item in self._sources.items() if name}

    @property
    def shares(self) -> dict[str, float]:
        """Each source's part of the rows; none for a source without a name."""
        weights = {name: item.weight for name, item in self._sources.items() if name}
        return {name: float(weight / sum(weights.values())) for name, weight in weights.items()}

    def ends_until(self, rows: int) -> list[End]:
        """The sources that end within so many rows from the start of the run, in order."""
        return self._mixture.ends_until(rows)

    def next_batch(self) -> Batch:
        """The next `batch_size` rows, or the share of them that this process has; the position moves over all of them.

        Raises:
            DataError: when every source has ended.
        """
        places: dict[str, list[tuple[int, int]]] = {}
        order: dict[str, list[int]] = {}
        for row in range(self._batch_size):
            name = self._next_source()
            place = self._sources[name].next_place()
            if row in self._own:
                places.setdefault(name, []).append(place)
                order.setdefault(name, []).append(row - self._own.start)
            self._tell(name)
        parts = [self._sources[name].rows.batch(mine) for name, mine in places.items()]
        return Batch.joined(parts, [row for rows in order.values() for row in rows])

    def state_dict(self) -> dict[str, Any]:
        """The position and what it is a position in, as JSON-able data."""
        if "" in self._sources:
            (only,) = self._sources.values()
            return {"epoch": only.epoch, "index": only.index, **self._identity, **only.identity}
        told = {name: {"epoch": item.epoch, "index": item.index} for name, item in self._sources.items()}
        since = self._mixture.state_dict()
        sources = {name: {**place, "since": since.get(name), **self._sources[name].part} for name, place in told.items()}
        return {"sources": sources, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state_dict` gave.

        Raises:
            RunError: when it is no position, or one in another stream; the message names what differs.
        """
        _require_same(self._identity, {**_BEFORE, **state}, "data")
        if "" in self._sources:
            (only,) = self._sources.values()
            _require_same(only.identity, state, "data")
            only.go_to(state, "data")
            self._mixture.load({"": only.had}, {"": only.had} if only.had != only.limit else {})
            return
        told = state.get("sources")
        told = told if isinstance(told, dict) else {}
        if told.keys() != self._sources.keys():
            expected, found = (", ".join(names) or "one source without a name" for names in (told, self._sources))
            raise RunError("the run was saved with other sources", where="data.sources", expected=expected, found=found)
        for name, item in self._sources.items():
            _require_same(item.part, told[name], f"data.sources.{name}")
            item.go_to(told[name], f"data.sources.{name}")
        since = {name: place["since"] for name, place in told.items() if place.get("since") is not None}
        try:
            self._mixture.load({name: item.had for name, item in self._sources.items()}, since)
        except (TypeError, ValueError) as error:
            raise RunError("not a position in this stream", where="data.sources", found=since) from error

    def _next_source(self) -> str:
        try:
            return self._mixture.next()
        except IndexError as error:
            hint = "Give more text or a larger max_epochs, or fewer --steps."
            raise DataError("every source has ended", where="--data", found=f"{self.rows:,} rows", hint=hint) from error

    def _tell(self, name: str) -> None:
        item = self._sources[name]
        if item.index:
            return
        if name and self._on_source is not None:
            self._on_source(name, item.epoch, item.had == item.limit)
        if not name and self._on_epoch is not None:
            self._on_epoch(item.epoch)


_BEFORE = {"packing": "concatenate"}
"""What a state does not say that was saved before it was a setting."""


def _require_same(wanted: Mapping[str, Any], state: Mapping[str, Any], where: str) -> None:
    for name, value in wanted.items():
        if state.get(name) != value:
            problem = f"the run was saved with another {name}, so its data cannot go on where it was"
            raise RunError(problem, where=f"{where}.{name}", expected=state.get(name), found=value)


class _SourceRows:
    """The rows of one source in their order, and the place in it."""

    def __init__(self, source: StreamSource, objective: Objective, options: RowOptions) -> None:
        self._seed = source_seed(options.seed, source.name)
        self.rows = _rows(source.tokens, objective, evolve(options, seed=self._seed))
        _require_a_row(len(self.rows), source.tokens, 1 if options.packing == "best-fit" else options.length, name=source.name)
        self.weight = Fraction(len(self.rows)) if source.weight is None else source.weight
        self.limit = None if source.max_epochs is None else source.max_epochs * len(self.rows)
        self.epoch = self.index = 0
        self._order = self._shuffled(0)
        self.identity = {"corpus": source.tokens.key, "rows": len(self.rows)}
        weight = None if source.weight is None else str(source.weight)
        self.part = {**self.identity, "weight": weight, "max_epochs": source.max_epochs}

    @property
    def had(self) -> int:
        """Rows that were given."""
        return self.epoch * len(self.rows) + self.index

    def next_place(self) -> tuple[int, int]:
        """Epoch and number of the next row."""
        place = self.epoch, int(self._order[self.index])
        self.index += 1
        if self.index == len(self.rows):
            self.epoch, self.index = self.epoch + 1, 0
            self._order = self._shuffled(self.epoch)
        return place

    def go_to(self, place: Mapping[str, Any], where: str) -> None:
        """Go to an epoch and a row of it.

        Raises:
            RunError: when there is no such place.
        """
        epoch, index = place.get("epoch"), place.get("index")
        if type(epoch) is not int or type(index) is not int or epoch < 0 or not 0 <= index < len(self.rows):
            expected = f"epoch ≥ 0 and 0 ≤ index < {len(self.rows)}"
            raise RunError("not a position in this stream", where=where, expected=expected, found=(epoch, index))
        self.epoch, self.index = epoch, index
        self._order = self._shuffled(epoch)

    def _shuffled(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self.rows))


def row_counts(rows: Mapping[str, int], weights: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """How many of `total` rows are of each source: at least one, by its weight, and no more than it has."""
    exact = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = {name: max(1, floor(share)) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: floor(exact[name]) - exact[name])[: max(0, total - sum(counts.values()))]:
        counts[name] += 1
    return {name: min(rows[name], count) for name, count in counts.items()}


def validation_batches(
    sources: TokenFile | Sequence[StreamSource],
    *,
    objective: Objective,
    sequence_length: int,
    batch_size: int,
    tokenizer: TokenizerLike,
    document_mask: bool = False,
    mask_probability: float = 0.15,
    packing: Packing = "concatenate",
    max_rows: int | None = None,
) -> Iterator[Batch]:
    """The same batches each time it is called: all rows in order, or `max_rows` of them spread evenly.

    Spread, for the first rows are one document's, and one document's loss says little of the others'. Several sources come
    one after the other, and of `max_rows` each has its share by its weight. Masks do not depend on the run's seed. The last
    row of a source is padded if it is short; its last batch may have fewer rows.

    Args:
        sources: each with a name, unless it is the only one; tokens alone are that.
        objective: cuts tokens into rows.
        sequence_length: tokens in a row.
        batch_size: rows in a batch, all of one source.
        tokenizer: gives the special tokens that the objective needs.
        document_mask: whether attention stays inside documents.
        mask_probability: share of the tokens to predict, of an objective that hides some.
        packing: how documents come into rows.
        max_rows: None for all.

    Raises:
        ConfigError: for an impossible length, batch size or number of rows.
        DataError: when a source has nothing to predict.
        TokenizerError: when the tokenizer lacks a special token that the objective needs.
    """
    made = {
        item.name or "": _HeldOut.of(
            item,
            objective,
            RowOptions(
                length=sequence_length,
                document_mask=document_mask,
                tokenizer=tokenizer,
                mask_probability=mask_probability,
                seed=source_seed(_VALIDATION_SEED, item.name),
                partial=True,
                packing=packing,
            ),
        )
        for item in _each(sources)
    }
    _require_at_least("batch_size", batch_size, 1)
    _require_at_least("max_rows", 1 if max_rows is None else max_rows, 1)
    rows = {name: len(item.rows) for name, item in made.items()}
    stated = {name: item.weight for name, item in made.items() if item.weight is not None}
    weights = stated if len(stated) == len(made) else {name: Fraction(number) for name, number in rows.items()}
    counts = rows if max_rows is None else row_counts(rows, weights, max_rows)
    return (batch for name, item in made.items() for batch in item.batches(counts[name], batch_size))


@frozen
class _HeldOut:
    """The rows of one source that may be measured."""

    name: str | None
    weight: Fraction | None
    rows: Rows

    @classmethod
    def of(cls, source: StreamSource, objective: Objective, options: RowOptions) -> _HeldOut:
        rows = _rows(source.tokens, objective, options)
        _require_a_row(len(rows), source.tokens, 1, name=source.name)
        return cls(source.name, source.weight, rows)

    def batches(self, count: int, batch_size: int) -> Iterator[Batch]:
        """So many rows, spread evenly."""
        places = [(0, number * len(self.rows) // count) for number in range(count)]
        for begin in range(0, count, batch_size):
            yield evolve(self.rows.batch(places[begin : begin + batch_size]), source=self.name)


def _rows(tokens: TokenFile, objective: Objective, options: RowOptions) -> Rows:
    if options.length < objective.shortest_row:
        expected = f"at least {objective.shortest_row}"
        raise ConfigError("the rows are too short", where="sequence_length", expected=expected, found=options.length)
    if implies_document_mask(options.packing) and not keeps_documents_apart(objective):
        expected = f"concatenate, for {objective.name} does not keep documents in a row apart"
        raise ConfigError("this packing is not for this objective", where="packing", expected=expected, found=options.packing)
    return objective.rows(tokens, options)


def _require_at_least(name: str, value: int, least: int) -> None:
    if not least <= value < _INTEGER_LIMIT:
        raise ConfigError("out of range", where=name, expected=f"{least} to 2⁶³ − 1", found=value)


def _require_a_row(rows: int, tokens: TokenFile, length: int, name: str | None = None) -> None:
    if rows == 0 and len(tokens) > length:
        hint = "What is a target is the objective's choice, and each document's first token is none: give other text."
        problem = "no row of the corpus has anything to learn"
        raise DataError(problem, where="--data", field=name, found=f"{len(tokens):,} tokens", hint=hint)
    if rows == 0:
        raise DataError(
            "the corpus is too small for one row",
            where="--data",
            field=name,
            expected=f"more than {length} tokens",
            found=len(tokens),
            hint="Give more text, or shorter rows with --sequence-length.",
        )

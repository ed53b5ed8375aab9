"""Packing: whole documents side by side in rows, none cut that fits a row, as little padding as best fit leaves.

Best-fit-decreasing bin packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv:2404.10830): the
longest piece first, each into the fullest row that has room for it. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from attrs import evolve, field, frozen

from apr_train.checkpoint.dtypes import Array
from apr_train.data.batch import IGNORED, Batch
from apr_train.data.tokens import TokenFile
from apr_train.run.objective_names import Packing
from apr_train.run.settings import DataSettings

Counts = np.ndarray[Any, np.dtype[np.int64]]
"""Places, sizes or numbers of rows."""


def implies_document_mask(packing: Packing) -> bool:
    """Whether a way of packing keeps attention inside documents, whatever `--document-mask` says."""
    return packing == "best-fit"


def with_packing(data: DataSettings, default: Packing) -> DataSettings:
    """Settings with the packing decided, `default` where the user has not, and with the document mask that it implies."""
    packing = data.packing or default
    return evolve(data, packing=packing, document_mask=data.document_mask or implies_document_mask(packing))


@frozen(kw_only=True)
class Pieces:
    """Stretches of tokens that each stay in one row: whole documents, or parts of one that is longer than a row.

    A piece of k + 1 tokens takes k positions: the first k are its inputs, the last k its targets.
    """

    begins: Counts = field(repr=False, eq=False)
    """`[pieces]`: where each piece's first token is."""
    sizes: Counts = field(repr=False, eq=False)
    """`[pieces]`: how many positions each takes, at least 1."""

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of_documents(cls, starts: Array, total: int, length: int) -> Pieces:
        """Cut what is longer than a row into pieces of `length` positions and a rest.

        A piece after a document's first begins with the last token of the one before, so that each token but a document's
        first is a target once. A document of one token has no target, and no piece.

        Args:
            starts: `[documents]`, where each document begins.
            total: tokens of all documents together.
            length: positions of a row.
        """
        begins = starts.astype(np.int64)
        predicted = np.diff(begins, append=total) - 1
        counts = -(-predicted // length)
        document = np.repeat(np.arange(len(begins)), counts)
        cut = (np.arange(len(document)) - (np.cumsum(counts) - counts)[document]) * length
        return cls(begins=begins[document] + cut, sizes=np.minimum(predicted[document] - cut, length))

    def with_targets(self, learn: Array) -> Array:
        """Which pieces have something to learn `[pieces]` bool, of marks for all tokens `[tokens]` bool."""
        if not len(self):
            return np.zeros(0, np.bool_)
        bounds = np.stack((self.begins + 1, self.begins + 1 + self.sizes), axis=1).ravel()
        if bounds[-1] == len(learn):  # reduceat's last stretch goes to the end by itself
            bounds = bounds[:-1]
        some: Array = np.logical_or.reduceat(learn, bounds)[::2]
        return some

    def chosen(self, which: Array) -> Pieces:
        """Those of these numbers, or where a mask is True."""
        return Pieces(begins=self.begins[which], sizes=self.sizes[which])


def best_fit(sizes: Counts, length: int) -> tuple[Counts, Counts]:
    """Pack pieces into rows of `length` positions, best fit decreasing.

    Pieces of one size are placed together, and rows of one history are kept as one range of numbers: a row with room r takes
    r // size of them before any other row is the best fit. So the work is sorting, and O(length log length) ranges.

    Args:
        sizes: `[pieces]`, each from 1 to `length`.
        length: positions of a row.

    Returns:
        The pieces' numbers, row by row `[pieces]`, and where each row begins in them `[rows + 1]`. The same sizes give the
        same rows; pieces of one size are placed in their order.
    """
    descending = np.argsort(-sizes, kind="stable")
    row_of = np.empty(len(sizes), np.int64)
    rows = _OpenRows(length)
    done = 0
    present, counts = np.unique(sizes, return_counts=True)
    for size, count in zip(present[::-1].tolist(), counts[::-1].tolist(), strict=True):
        for first, stop, each in rows.place(size, count):
            row_of[done : done + (stop - first) * each] = np.repeat(np.arange(first, stop), each)
            done += (stop - first) * each
    by_row = np.argsort(row_of, kind="stable")
    ends = np.cumsum(np.bincount(row_of, minlength=rows.count))
    return descending[by_row], np.concatenate(([0], ends)).astype(np.int64)


class _OpenRows:
    """Ranges of rows by the room that is left in them."""

    def __init__(self, length: int) -> None:
        self.count = 0
        self._length = length
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        self._rooms = 0
        """Bit r is set where some row has room r."""

    def place(self, size: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Find room for `count` pieces of one size: ranges of rows (first, stop), and how many pieces each of them takes."""
        while count:
            room, (first, stop) = self._best(size, count)
            each = min(room // size, count)
            used = min(stop - first, count // each)
            if used < stop - first:
                self._add(room, first + used, stop)
            self._add(room - each * size, first, first + used)
            count -= used * each
            yield first, first + used, each

    def _best(self, size: int, count: int) -> tuple[int, tuple[int, int]]:
        """A range of the least room that is enough, taken out; new rows where there is none."""
        fitting = self._rooms >> size
        if not fitting:
            first = self.count
            self.count += -(-count // (self._length // size))
            return self._length, (first, self.count)
        room = size + (fitting & -fitting).bit_length() - 1
        ranges = self._ranges[room]
        found = ranges.pop()
        if not ranges:
            self._rooms ^= 1 << room
        return room, found

    def _add(self, room: int, first: int, stop: int) -> None:
        self._ranges.setdefault(room, []).append((first, stop))
        if room:
            self._rooms |= 1 << room


def fill_targets(source: TokenFile, begin: int, tokens: Array, targets: Array) -> None:
    """Write the ids from `begin` on into `tokens` `[size]`, and those behind them, where they are learnt, into `targets`."""
    size = len(tokens)
    tokens[:] = source.ids[begin : begin + size]
    targets[:] = source.ids[begin + 1 : begin + size + 1]
    if source.learn is not None:
        targets[~source.learn[begin + 1 : begin + size + 1]] = IGNORED


class PackedRows:
    """Rows of whole documents, padded behind them; attention and positions are each document's own."""

    def __init__(self, tokens: TokenFile, length: int) -> None:
        """Pack all documents; pieces of which nothing is a target are left out."""
        self._tokens = tokens
        self._length = length
        pieces = Pieces.of_documents(tokens.starts, len(tokens), length)
        learnt = pieces if tokens.learn is None else pieces.chosen(pieces.with_targets(tokens.learn))
        self._left_out = len(pieces) - len(learnt)
        order, self._rows = best_fit(learnt.sizes, length)
        self._pieces = learnt.chosen(order)

    def __len__(self) -> int:
        return len(self._rows) - 1

    @property
    def padding_share(self) -> float:
        """Share of all positions that hold no token."""
        positions = len(self) * self._length
        return 1 - int(self._pieces.sizes.sum()) / positions if positions else 0.0

    @property
    def told(self) -> str:
        """Share of the padding, and how many pieces are left out."""
        left_out = f", {self._left_out:,} pieces without a target left out" if self._left_out else ""
        return f"best-fit: {100 * self.padding_share:.1f} % padding{left_out}"

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Tokens, targets, documents and positions of the rows at (epoch, index)."""
        shape = (len(places), self._length)
        tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        lengths = []
        for line, (_, index) in enumerate(places):
            lengths.append(self._fill(index, tokens[line], targets[line]))
        documents = np.stack([np.repeat(np.arange(len(row), dtype=np.int32), row) for row in lengths])
        positions = np.stack([_positions(row) for row in lengths])
        return Batch.from_arrays(tokens, targets, document_ids=documents, document_lengths=tuple(lengths), positions=positions)

    def _fill(self, index: int, tokens: Array, targets: Array) -> tuple[int, ...]:
        """Write one row; gives the lengths of its documents, padding being the last one."""
        own = slice(int(self._rows[index]), int(self._rows[index + 1]))
        begins, sizes = self._pieces.begins[own].tolist(), self._pieces.sizes[own].tolist()
        place = 0
        for begin, size in zip(begins, sizes, strict=True):
            fill_targets(self._tokens, begin, tokens[place : place + size], targets[place : place + size])
            place += size
        padding = self._length - place
        return (*sizes, padding) if padding else tuple(sizes)


def _positions(lengths: Sequence[int]) -> Counts:
    """0, 1, … in each document of a row `[length]`."""
    sizes = np.array(lengths, np.int64)
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)

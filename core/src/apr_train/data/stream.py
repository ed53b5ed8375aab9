"""Batches from tokens: shuffled and endless for training, fixed and finite for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from apr_train.data.batch import Batch, RowOptions, Rows
from apr_train.data.objectives import Objective, keeps_documents_apart
from apr_train.data.packing import implies_document_mask
from apr_train.data.protocols import TokenizerLike
from apr_train.data.tokens import TokenFile
from apr_train.errors import ConfigError, DataError, RunError
from apr_train.run.objective_names import Packing

_VALIDATION_SEED = 0
_INTEGER_LIMIT = 1 << 63


class BatchStream:
    """An endless stream of training batches, every row once an epoch, in an order that the seed and the epoch decide.

    The position counts rows, not batches, so that it means the same for every batch size (a run's own is fixed at its
    start). A batch at an epoch's end takes its last rows from the next epoch.
    """

    def __init__(
        self,
        tokens: TokenFile,
        *,
        objective: Objective,
        sequence_length: int,
        batch_size: int,
        seed: int,
        tokenizer: TokenizerLike,
        document_mask: bool = False,
        mask_probability: float = 0.15,
        packing: Packing = "concatenate",
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """`on_epoch` is called with the number of whole epochs done, each time that one is.

        Raises:
            ConfigError: for an impossible length, batch size or seed.
            DataError: when the corpus is too small for one row.
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
        self._rows = _rows(tokens, objective, options)
        _require_a_row(len(self._rows), tokens, 1 if packing == "best-fit" else sequence_length)
        self._batch_size, self._seed, self._on_epoch = batch_size, seed, on_epoch
        self._epoch = self._index = 0
        self._order = self._shuffled(0)
        self._identity = {
            "corpus": tokens.key,
            "objective": objective.name,
            "sequence_length": sequence_length,
            "seed": seed,
            "document_mask": document_mask,
            "mask_probability": mask_probability,
            "packing": packing,
            "rows": len(self._rows),
        }

    @property
    def told(self) -> str | None:
        """What a user should know of how documents came into rows; None where there is nothing."""
        return self._rows.told

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self._epoch

    def next_batch(self) -> Batch:
        """The next `batch_size` rows."""
        return self._rows.batch([self._next_place() for _ in range(self._batch_size)])

    def state_dict(self) -> dict[str, Any]:
        """The position and what it is a position in, as JSON-able data."""
        return {"epoch": self._epoch, "index": self._index, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state_dict` gave.

        Raises:
            RunError: when it is no position, or one in another stream; the message names what differs.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                problem = f"the run was saved with another {name}, so its data cannot go on where it was"
                raise RunError(problem, where=f"data.{name}", expected=state.get(name), found=value)
        epoch, index = state.get("epoch"), state.get("index")
        if type(epoch) is not int or type(index) is not int or epoch < 0 or not 0 <= index < len(self._rows):
            expected = f"epoch ≥ 0 and 0 ≤ index < {len(self._rows)}"
            raise RunError("not a position in this stream", where="data", expected=expected, found=(epoch, index))
        self._epoch, self._index = epoch, index
        self._order = self._shuffled(epoch)

    def _next_place(self) -> tuple[int, int]:
        place = self._epoch, int(self._order[self._index])
        self._index += 1
        if self._index == len(self._rows):
            self._epoch, self._index = self._epoch + 1, 0
            self._order = self._shuffled(self._epoch)
            if self._on_epoch is not None:
                self._on_epoch(self._epoch)
        return place

    def _shuffled(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))


def validation_batches(
    tokens: TokenFile,
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

    Spread, for the first rows are one document's, and one document's loss says little of the others'. Masks do not
    depend on the run's seed. The last row is padded if it is short; the last batch may have fewer rows.

    Raises:
        ConfigError: for an impossible length, batch size or number of rows.
        DataError: when there is nothing to predict.
        TokenizerError: when the tokenizer lacks a special token that the objective needs.
    """
    options = RowOptions(
        length=sequence_length,
        document_mask=document_mask,
        tokenizer=tokenizer,
        mask_probability=mask_probability,
        seed=_VALIDATION_SEED,
        partial=True,
        packing=packing,
    )
    rows = _rows(tokens, objective, options)
    _require_at_least("batch_size", batch_size, 1)
    _require_at_least("max_rows", 1 if max_rows is None else max_rows, 1)
    _require_a_row(len(rows), tokens, 1)
    count = len(rows) if max_rows is None else min(len(rows), max_rows)
    places = [(0, number * len(rows) // count) for number in range(count)]
    return (rows.batch(places[begin : begin + batch_size]) for begin in range(0, count, batch_size))


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


def _require_a_row(rows: int, tokens: TokenFile, length: int) -> None:
    if rows == 0 and len(tokens) > length:
        hint = "What is a target is the objective's choice, and each document's first token is none: give other text."
        raise DataError(
            "no row of the corpus has anything to learn", where="--data", found=f"{len(tokens):,} tokens", hint=hint
        )
    if rows == 0:
        raise DataError(
            "the corpus is too small for one row",
            where="--data",
            expected=f"more than {length} tokens",
            found=len(tokens),
            hint="Give more text, or shorter rows with --sequence-length.",
        )

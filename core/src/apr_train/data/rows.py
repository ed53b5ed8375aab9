"""How a token file is cut into rows of one length: three ways, behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from apr_train.data.batch import IGNORED, Batch
from apr_train.data.masking import Masking
from apr_train.data.protocols import TokenizerLike
from apr_train.data.special_tokens import special_id
from apr_train.data.tokens import TokenFile
from apr_train.errors import ConfigError
from apr_train.family.card import Objective

Array = np.ndarray[Any, np.dtype[Any]]


class Rows(Protocol):
    """The rows of one side of a corpus."""

    def __len__(self) -> int: ...

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """The rows at (epoch, index); the epoch matters only where masks are dynamic."""
        ...


class CausalRows:
    """Row i predicts tokens `i*length + 1` to `(i+1)*length` from those before them; documents follow on one another."""

    def __init__(self, tokens: TokenFile, length: int, *, document_mask: bool, partial: bool) -> None:
        """`partial`: whether the last row may be short (its rest is padding that is not learnt from)."""
        self._tokens = tokens
        self._length = length
        self._document_mask = document_mask
        predicted = max(0, len(tokens) - 1)
        self._count = -(-predicted // length) if partial else predicted // length

    def __len__(self) -> int:
        return self._count

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Tokens and targets, with document ids when attention stays inside documents."""
        shape = (len(places), self._length)
        tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        documents = np.zeros(shape, np.int32)
        for line, (_, index) in enumerate(places):
            begin = index * self._length
            piece = self._tokens.ids[begin : begin + self._length + 1]
            size = len(piece) - 1
            tokens[line, :size], targets[line, :size] = piece[:-1], piece[1:]
            if self._document_mask:
                self._separate(begin, size, targets[line], documents[line])
        lengths = tuple(_run_lengths(row) for row in documents) if self._document_mask else None
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            document_ids=torch.from_numpy(documents) if self._document_mask else None,
            document_lengths=lengths,
            target_count=int((targets != IGNORED).sum()),
        )

    def _separate(self, begin: int, size: int, targets: Array, documents: Array) -> None:
        """Number the documents of a row and forget the targets that lie in the next document; padding is a document."""
        positions = np.arange(begin, begin + size + 1, dtype=np.uint64)
        owner = np.searchsorted(self._tokens.starts, positions, side="right").astype(np.int64)
        documents[:size] = owner[:-1] - owner[0]
        documents[size:] = documents[size - 1] + 1
        targets[:size][owner[1:] != owner[:-1]] = IGNORED


class MaskedRows:
    """`bos … eos` around pieces of the token stream; with `by_document`, no row holds two documents."""

    def __init__(
        self, tokens: TokenFile, length: int, *, masking: Masking, ends: tuple[int, int, int], by_document: bool, partial: bool
    ) -> None:
        """`ends`: the ids of bos, eos and pad; `partial`: whether the last row may be short, when documents are packed."""
        self._tokens = tokens
        self._length = length
        self._masking = masking
        self._bos, self._eos, self._pad = ends
        self._room = length - 2
        if by_document:
            stops = np.append(tokens.starts[1:], len(tokens)).astype(np.int64)
            self._begins, self._stops = tokens.starts.astype(np.int64), stops - 1  # a separator would be a second eos
        else:
            self._begins, self._stops = np.array([0]), np.array([len(tokens)])
        sizes = self._stops - self._begins
        self._last_row = np.cumsum(-(-sizes // self._room) if partial or by_document else sizes // self._room)

    def __len__(self) -> int:
        return int(self._last_row[-1]) if len(self._last_row) else 0

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Masked tokens and targets, with `keep` when a row is padded."""
        shape = (len(places), self._length)
        tokens, targets = np.full(shape, self._pad, np.int64), np.full(shape, IGNORED, np.int64)
        keep = np.zeros(shape, np.bool_)
        for line, (epoch, index) in enumerate(places):
            row = self._row(index)
            tokens[line, : len(row)], targets[line, : len(row)] = self._masking.apply(row, epoch=epoch, row=index)
            keep[line, : len(row)] = True
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            keep=None if keep.all() else torch.from_numpy(keep),
            target_count=int((targets != IGNORED).sum()),
        )

    def _row(self, index: int) -> Array:
        part = int(np.searchsorted(self._last_row, index, side="right"))
        first = int(self._last_row[part - 1]) if part else 0
        begin = int(self._begins[part]) + (index - first) * self._room
        stop = min(begin + self._room, int(self._stops[part]))
        return np.concatenate(([self._bos], self._tokens.ids[begin:stop], [self._eos])).astype(np.int64)


def make_rows(
    tokens: TokenFile,
    *,
    objective: Objective,
    length: int,
    document_mask: bool,
    tokenizer: TokenizerLike,
    mask_probability: float,
    seed: int,
    partial: bool,
) -> Rows:
    """The rows that an objective wants.

    Raises:
        ConfigError: for a length that leaves no room for a token, or an unknown objective.
        TokenizerError: when masked-lm has no bos, eos, pad or mask token.
    """
    shortest = 3 if objective == "masked-lm" else 1
    if length < shortest:
        raise ConfigError("the rows are too short", where="sequence_length", expected=f"at least {shortest}", found=length)
    if objective == "causal-lm":
        return CausalRows(tokens, length, document_mask=document_mask, partial=partial)
    if objective != "masked-lm":
        raise ConfigError("unknown objective", where="objective", expected="causal-lm or masked-lm", found=objective)
    bos, eos, pad = (special_id(tokenizer, name, "rows of masked-lm need it") for name in ("bos", "eos", "pad"))
    masking = Masking.for_tokenizer(tokenizer, probability=mask_probability, seed=seed)
    return MaskedRows(tokens, length, masking=masking, ends=(bos, eos, pad), by_document=document_mask, partial=partial)


def _run_lengths(row: Array) -> tuple[int, ...]:
    """How long each document is in a row of non-decreasing document numbers."""
    edges = np.flatnonzero(np.diff(row)) + 1
    return tuple(np.diff(np.concatenate(([0], edges, [len(row)]))).tolist())

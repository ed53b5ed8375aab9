"""Causal language modelling: each token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from apr_train.checkpoint.dtypes import Array
from apr_train.checkpoint.header import Kind
from apr_train.data.batch import IGNORED, Batch, RowOptions
from apr_train.data.encoding import EncodeOptions, Encoder, TextEncoder
from apr_train.data.id_documents import IdEncoder
from apr_train.data.packing import PackedRows, fill_targets
from apr_train.data.protocols import TokenizerLike
from apr_train.data.special_tokens import DocumentEnds, decoder_ends
from apr_train.data.tokens import TokenFile
from apr_train.family.card import ObjectiveName
from apr_train.model.attention.masks import Causal, Documents, MaskKind
from apr_train.run.objective_names import Packing, SourceKind, TrainingObjective

if TYPE_CHECKING:
    from torch import Tensor

    from apr_train.model.protocol import LanguageModel


@frozen
class CausalLM:
    """The objective of decoders; a whole text is predicted, so that its cost can be told in bits per byte."""

    name: ClassVar[TrainingObjective] = "causal-lm"
    predicts: ClassVar[ObjectiveName] = "causal-lm"
    source_kinds: ClassVar[tuple[SourceKind, ...]] = ("text", "tokens")
    packing: ClassVar[Packing] = "concatenate"
    kind: ClassVar[Kind] = "decoder"
    shortest_row: ClassVar[int] = 1
    special_tokens: ClassVar[tuple[str, ...]] = ()
    measures_accuracy: ClassVar[bool] = False
    measures_bits_per_byte: ClassVar[bool] = True

    def mask_kind(self, *, document_mask: bool) -> MaskKind:
        """`documents` where attention stays inside documents, else `causal`."""
        return "documents" if document_mask else "causal"

    def document_ends(self, tokenizer: TokenizerLike) -> DocumentEnds:
        """A bos where the tokenizer puts one, and the end of text."""
        return decoder_ends(tokenizer)

    def encoder(self, kind: SourceKind, options: EncodeOptions) -> Encoder:
        """Texts between their ends, or ids that somebody else made."""
        ends = self.document_ends(options.tokenizer)
        if kind == "tokens":
            return IdEncoder(ends.end)
        return TextEncoder(options.tokenizer, ends, options.settings.parse_special)

    def rows(self, tokens: TokenFile, options: RowOptions) -> CausalRows | PackedRows:
        """Rows that follow on one another, or rows of whole documents."""
        if options.packing == "best-fit":
            return PackedRows(tokens, options.length)
        return CausalRows(tokens, options.length, document_mask=options.document_mask, partial=options.partial)

    def mask(self, batch: Batch) -> Causal | Documents:
        """Causal, inside documents where the batch numbers them."""
        return Causal() if batch.document_ids is None else Documents(batch.document_ids, batch.document_lengths)

    def predicted(self, model: LanguageModel, batch: Batch, losses: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Every position: hidden states `[batch * length, hidden]` and targets `[batch * length]`."""
        hidden = model.hidden_states(batch.tokens, mask=self.mask(batch), positions=batch.positions, losses=losses)
        return hidden.flatten(0, 1), batch.targets.flatten()


class CausalRows:
    """Row i predicts tokens `i*length + 1` to `(i+1)*length` from those before them; documents follow on one another."""

    def __init__(self, tokens: TokenFile, length: int, *, document_mask: bool, partial: bool) -> None:
        """`partial`: whether the last row may be short (its rest is padding that is not learnt from)."""
        self._tokens = tokens
        self._length = length
        self._document_mask = document_mask
        predicted = max(0, len(tokens) - 1)
        count = -(-predicted // length) if partial else predicted // length
        self._kept = None if tokens.learn is None else _rows_with_targets(tokens.learn, count, length)
        self._count = count if self._kept is None else len(self._kept)
        self._left_out = count - self._count

    def __len__(self) -> int:
        return self._count

    @property
    def told(self) -> str | None:
        """How many rows are left out."""
        return f"concatenate: {self._left_out:,} rows without a target left out" if self._left_out else None

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Tokens and targets of the rows at (epoch, index), with document ids when attention stays inside documents."""
        shape = (len(places), self._length)
        tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        documents = np.zeros(shape, np.int32)
        for line, (_, index) in enumerate(places):
            begin = (index if self._kept is None else int(self._kept[index])) * self._length
            size = min(self._length, len(self._tokens) - 1 - begin)
            fill_targets(self._tokens, begin, tokens[line, :size], targets[line, :size])
            if self._document_mask:
                self._separate(begin, size, targets[line], documents[line])
        if not self._document_mask:
            return Batch.from_arrays(tokens, targets)
        lengths = tuple(_run_lengths(row) for row in documents)
        return Batch.from_arrays(tokens, targets, document_ids=documents, document_lengths=lengths)

    def _separate(self, begin: int, size: int, targets: Array, documents: Array) -> None:
        """Number the documents of a row and forget the targets that lie in the next document; padding is a document."""
        positions = np.arange(begin, begin + size + 1, dtype=np.uint64)
        owner = np.searchsorted(self._tokens.starts, positions, side="right").astype(np.int64)
        documents[:size] = owner[:-1] - owner[0]
        documents[size:] = documents[size - 1] + 1
        targets[:size][owner[1:] != owner[:-1]] = IGNORED


def _rows_with_targets(learn: Array, count: int, length: int) -> Array:
    """The numbers of the rows that have something to learn, of marks for all tokens `[tokens]` bool."""
    if count == 0:
        return np.zeros(0, np.int64)
    kept: Array = np.flatnonzero(np.logical_or.reduceat(learn[: count * length + 1], np.arange(count) * length + 1))
    return kept


def _run_lengths(row: Array) -> tuple[int, ...]:
    """How long each document is in a row of non-decreasing document numbers."""
    edges = np.flatnonzero(np.diff(row)) + 1
    return tuple(np.diff(np.concatenate(([0], edges, [len(row)]))).tolist())

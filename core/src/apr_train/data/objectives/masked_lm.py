"""Masked language modelling: some tokens are hidden, and predicted from all the others.

Masking is dynamic, and 80 % mask token, 10 % random token, 10 % unchanged. Source: BERT (arXiv:1810.04805, 3.1), made
anew in each epoch as in RoBERTa (arXiv:1907.11692, 4.1). The random numbers of a row depend on the seed, the epoch and
the row alone (Philox is counter-based), so that neither a resume nor the grouping of rows into batches changes a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from attrs import field, frozen

from apr_train.checkpoint.header import Kind
from apr_train.data.batch import IGNORED, Batch, RowOptions
from apr_train.data.encoding import EncodeOptions, TextEncoder
from apr_train.data.protocols import TokenizerLike
from apr_train.data.special_tokens import DocumentEnds, encoder_end, never_masked, special_id
from apr_train.data.tokens import TokenFile
from apr_train.family.card import ObjectiveName
from apr_train.model.attention.masks import Bidirectional, MaskKind
from apr_train.run.objective_names import Packing, SourceKind, TrainingObjective

if TYPE_CHECKING:
    from torch import Tensor

    from apr_train.model.protocol import LanguageModel

Ids = np.ndarray[Any, np.dtype[np.int64]]
_Flags = np.ndarray[Any, np.dtype[np.bool_]]

_MASKED = 0.8
_MASKED_OR_RANDOM = 0.9


@frozen
class MaskedLM:
    """The objective of encoders; measured beside the loss: the share of hidden tokens that are predicted right."""

    name: ClassVar[TrainingObjective] = "masked-lm"
    predicts: ClassVar[ObjectiveName] = "masked-lm"
    source_kinds: ClassVar[tuple[SourceKind, ...]] = ("text",)
    packing: ClassVar[Packing] = "concatenate"
    kind: ClassVar[Kind] = "encoder"
    shortest_row: ClassVar[int] = 3
    special_tokens: ClassVar[tuple[str, ...]] = ("bos", "eos", "pad", "mask")
    measures_accuracy: ClassVar[bool] = True
    measures_bits_per_byte: ClassVar[bool] = False

    def mask_kind(self, *, document_mask: bool) -> MaskKind:
        """`bidirectional`: only padding is hidden, for with the document mask no row holds two documents."""
        return "bidirectional"

    def document_ends(self, tokenizer: TokenizerLike) -> DocumentEnds:
        """`eos` behind each document; the bos is the row's, one a row, as RoBERTa packs full sentences (4.2)."""
        return DocumentEnds(end=encoder_end(tokenizer, "eos"))

    def encoder(self, kind: SourceKind, options: EncodeOptions) -> TextEncoder:
        """Texts between their ends."""
        ends = self.document_ends(options.tokenizer)
        return TextEncoder(options.tokenizer, ends, options.settings.parse_special)

    def rows(self, tokens: TokenFile, options: RowOptions) -> MaskedRows:
        """Rows of the form `bos … eos`, some of their tokens hidden.

        Raises:
            TokenizerError: when the tokenizer has no bos, eos, pad or mask token.
        """
        bos, eos = (encoder_end(options.tokenizer, name) for name in ("bos", "eos"))
        pad = special_id(options.tokenizer, "pad", "rows of masked-lm need it")
        masking = Masking.for_tokenizer(options.tokenizer, probability=options.mask_probability, seed=options.seed)
        return MaskedRows(
            tokens,
            options.length,
            masking=masking,
            ends=(bos, eos, pad),
            by_document=options.document_mask,
            partial=options.partial,
        )

    def mask(self, batch: Batch) -> Bidirectional:
        """Everything but padding."""
        return Bidirectional(batch.keep)

    def predicted(self, model: LanguageModel, batch: Batch, losses: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The hidden tokens' positions only: hidden states `[positions, hidden]` and targets `[positions]`."""
        hidden = model.hidden_states(batch.tokens, mask=self.mask(batch), losses=losses)
        chosen = batch.targets != IGNORED
        return hidden[chosen], batch.targets[chosen]


class MaskedRows:
    """`bos … eos` around spans of the token stream; with `by_document`, no row holds two documents."""

    told: ClassVar[None] = None

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
            self._begins, self._stops = tokens.starts.astype(np.int64), tokens.stops - 1  # a separator would be a second eos
        else:
            self._begins, self._stops = np.array([0]), np.array([len(tokens)])
        sizes = self._stops - self._begins
        self._last_row = np.cumsum(-(-sizes // self._room) if partial or by_document else sizes // self._room)

    def __len__(self) -> int:
        return int(self._last_row[-1]) if len(self._last_row) else 0

    def batch(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Masked tokens and targets of the rows at (epoch, index), with `keep` when a row is padded."""
        shape = (len(places), self._length)
        tokens, targets = np.full(shape, self._pad, np.int64), np.full(shape, IGNORED, np.int64)
        keep = np.zeros(shape, np.bool_)
        for line, (epoch, index) in enumerate(places):
            row = self._row(index)
            tokens[line, : len(row)], targets[line, : len(row)] = self._masking.apply(row, epoch=epoch, row=index)
            keep[line, : len(row)] = True
        return Batch.from_arrays(tokens, targets, keep=None if keep.all() else keep)

    def _row(self, index: int) -> Ids:
        part = int(np.searchsorted(self._last_row, index, side="right"))
        first = int(self._last_row[part - 1]) if part else 0
        begin = int(self._begins[part]) + (index - first) * self._room
        stop = min(begin + self._room, int(self._stops[part]))
        return np.concatenate(([self._bos], self._tokens.ids[begin:stop], [self._eos])).astype(np.int64)


@frozen(kw_only=True)
class Masking:
    """How one row's tokens become input and targets."""

    mask_id: int
    """The token that hides."""
    special: _Flags = field(repr=False, eq=False)
    """`[vocabulary]`: True for tokens that are never chosen."""
    ordinary: Ids = field(repr=False, eq=False)
    """The ids that a random replacement is drawn from."""
    probability: float
    """Share of the ordinary tokens that are chosen; at least one in each row that has any."""
    seed: int
    """Seed of the random numbers."""

    @classmethod
    def for_tokenizer(cls, tokenizer: TokenizerLike, *, probability: float, seed: int) -> Masking:
        """The masking of a tokenizer's vocabulary.

        Raises:
            TokenizerError: when it has no mask token.
        """
        mask_id = special_id(tokenizer, "mask", "masked-lm hides tokens behind it")
        special = np.zeros(tokenizer.size, dtype=np.bool_)
        special[never_masked(tokenizer)] = True
        return cls(mask_id=mask_id, special=special, ordinary=np.flatnonzero(~special), probability=probability, seed=seed)

    def apply(self, tokens: Ids, *, epoch: int, row: int) -> tuple[Ids, Ids]:
        """Input and targets, `[length]` each, of a row's true tokens."""
        maskable = ~self.special[tokens]
        selector, action, replacement = self._random(epoch, row).random((3, len(tokens)))
        chosen = maskable & (selector < self.probability)
        if not chosen.any() and maskable.any():
            chosen[np.where(maskable, selector, 2.0).argmin()] = True
        targets = np.where(chosen, tokens, IGNORED)
        drawn = self.ordinary[(replacement * len(self.ordinary)).astype(np.int64)]
        changed = np.where(action < _MASKED, self.mask_id, np.where(action < _MASKED_OR_RANDOM, drawn, tokens))
        return np.where(chosen, changed, tokens), targets

    def _random(self, epoch: int, row: int) -> np.random.Generator:
        counter = np.array([0, 0, row, epoch], dtype=np.uint64)
        key = np.array([self.seed, 0], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=key))

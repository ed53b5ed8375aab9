"""Dynamic masking for the masked-LM objective: 80 % mask token, 10 % random token, 10 % unchanged.

Source: BERT (arXiv:1810.04805, 3.1), made anew in each epoch as in RoBERTa (arXiv:1907.11692, 4.1). The random numbers
of a row depend on the seed, the epoch and the row alone (Philox is counter-based), so that neither a resume nor the
grouping of rows into batches changes a mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import field, frozen

from apr_train.data.batch import IGNORED
from apr_train.data.protocols import TokenizerLike
from apr_train.data.special_tokens import never_masked, special_id

Ids = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

_MASKED = 0.8
_MASKED_OR_RANDOM = 0.9


@frozen(kw_only=True)
class Masking:
    """How one row's tokens become input and targets."""

    mask_id: int
    """The token that hides."""
    special: Flags = field(repr=False, eq=False)
    """`[vocabulary]`: True for tokens that are never chosen."""
    ordinary: Ids = field(repr=False, eq=False)
    """The ids that a random replacement is drawn from."""
    probability: float
    """Share of the ordinary tokens that are chosen; at least one in each row that has any."""
    seed: int
    """Of the random numbers."""

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

"""One batch of rows, as tensors."""

from __future__ import annotations

import torch
from attrs import evolve, field, frozen
from torch import Tensor

IGNORED = -100
"""Target of a position that is not learnt from; torch's cross entropy ignores it by default."""


@frozen(kw_only=True)
class Batch:
    """Rows of token ids and what to predict at each position."""

    tokens: Tensor = field(repr=False)
    """`[batch, length]` int64: the model's input."""
    targets: Tensor = field(repr=False)
    """`[batch, length]` int64: what the model should say at that position, `IGNORED` where nothing. Causal-lm: already
    shifted, `targets[:, j]` follows `tokens[:, j]`."""
    document_ids: Tensor | None = field(default=None, repr=False)
    """`[batch, length]` int32, counted from 0 in each row; only with the document mask, causal-lm."""
    document_lengths: tuple[tuple[int, ...], ...] | None = None
    """Per row, the lengths of its documents; they add up to the row's length. Given with `document_ids`."""
    keep: Tensor | None = field(default=None, repr=False)
    """`[batch, length]` bool, False at padding; None: there is no padding. Masked-lm only."""
    target_count: int
    """Number of positions that are learnt from."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name in ("tokens", "targets", "document_ids", "keep")
            if (tensor := getattr(self, name)) is not None
        }
        return evolve(self, **moved)

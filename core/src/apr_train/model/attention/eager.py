"""The reference: attention as the formula reads, every score in memory. Slow, and meant to be obviously right."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from apr_train.model.attention.backend import Request
from apr_train.model.attention.dense import allowed
from apr_train.model.attention.masks import Mask


class EagerAttention:
    """softmax(q kᵀ · scale) v in float32 (float64 for float64), kv heads shared by broadcasting."""

    name = "eager"
    serves_places = True

    def supports(self, request: Request) -> str | None:
        """Everything runs."""
        return None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        *,
        dropout: float = 0.0,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """See `AttentionBackend`."""
        batch, length, heads, head_dim = q.shape
        groups = k.shape[2]
        wide = torch.promote_types(q.dtype, torch.float32)
        q = q.reshape(batch, length, groups, heads // groups, head_dim)
        scores = torch.einsum("bqgrd,bkgd->bgrqk", q.to(wide), k.to(wide)) * (head_dim**-0.5 if scale is None else scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = _masked_softmax(scores, allowed(mask, length, k.shape[1], q.device))
        weights = F.dropout(weights, dropout)
        return torch.einsum("bgrqk,bkgd->bqgrd", weights, v.to(wide)).flatten(2, 3).to(q.dtype)


def _masked_softmax(scores: Tensor, visible: Tensor | None) -> Tensor:
    """Softmax over the visible keys of `[batch, groups, heads per group, q, k]`; zeros where none is visible."""
    if visible is None:
        return scores.softmax(-1)
    hidden = ~visible[:, :, None]
    # The lowest finite number instead of -inf keeps the gradient of a row without any key finite.
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hidden, 0.0)

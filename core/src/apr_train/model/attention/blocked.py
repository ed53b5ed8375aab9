"""Causal attention for compiled training on a CPU: a few batched matrix products instead of torch's CPU flash kernel.

The kernel's backward took a quarter of a training step; compiled, this takes less than half of its time in bfloat16.
Queries are taken some rows at a time against the keys up to their own position (half of the work of a full matrix), a
kv head's query heads are folded into the rows, so that k and v are never expanded, and the backward pass computes the
weights again from the log-sum-exp as FlashAttention does (Dao et al. 2022): what is kept is q, k, v, the output and
one number a row. benchmarks/attention.py has the ratios.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_ROWS = 128
MAX_BLOCKS = 16
"""Rows grow beyond BLOCK_ROWS rather than blocks beyond this: a compiler unrolls them."""


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """Causal attention; shapes as for `AttentionBackend`.

    `visible`, `[batch, 1, length, length]` bool, restricts it further (it must allow each query its own key).

    Scores are accumulated and normalised in float32; from bfloat16 products they are kept to 16 bits of mantissa.
    """
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    out: Tensor = _BlockedAttention.apply(q, k, v, visible)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return out


def _fold(x: Tensor, per_group: int) -> Tensor:
    """`[B, L, groups * per_group, D]` → `[B * groups, per_group, L, D]`."""
    batch, length, heads, dim = x.shape
    groups = heads // per_group
    return x.reshape(batch, length, groups, per_group, dim).permute(0, 2, 3, 1, 4).reshape(-1, per_group, length, dim)


def _unfold(x: Tensor, batch: int) -> Tensor:
    """The inverse of `_fold`."""
    _, per_group, length, dim = x.shape
    return x.reshape(batch, -1, per_group, length, dim).permute(0, 3, 1, 2, 4).reshape(batch, length, -1, dim)


def _blocks(length: int) -> list[tuple[int, int]]:
    rows = max(BLOCK_ROWS, -(-length // MAX_BLOCKS))
    return [(start, min(start + rows, length)) for start in range(0, length, rows)]


def _scores(q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
    """Scaled scores of the last queries `[G, R, rows, D]` on keys `[G, end, D]`: `[G, R, rows, end]`, -inf where hidden.

    A bfloat16 product is rounded to 8 bits, too few for an exponent; a second product that starts from minus the first
    gives what the rounding lost.
    """
    groups, per_group, rows, dim = q.shape
    end = k.shape[1]
    folded, keys = q.reshape(groups, -1, dim), k.transpose(1, 2)
    product = torch.bmm(folded, keys)
    wide = product.to(torch.promote_types(q.dtype, torch.float32))
    if q.dtype == torch.bfloat16:
        wide = wide + torch.baddbmm(product, folded, keys, beta=-1).to(wide.dtype)
    wide = wide.view(groups, per_group, rows, end) * dim**-0.5
    causal = torch.arange(end, device=q.device) <= torch.arange(end - rows, end, device=q.device)[:, None]
    if visible is not None:
        of_row = visible[:, :, end - rows : end, :end] & causal
        causal = of_row.repeat_interleave(groups // len(of_row), dim=0)
    return torch.where(causal, wide, float("-inf"))


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        batch = q.shape[0]
        q, k, v = _fold(q, q.shape[2] // k.shape[2]), _fold(k, 1)[:, 0], _fold(v, 1)[:, 0]
        outputs, totals = [], []
        for start, end in _blocks(q.shape[2]):
            scores = _scores(q[:, :, start:end], k[:, :end], visible)
            total = scores.logsumexp(-1, keepdim=True)
            weights = (scores - total).exp().to(q.dtype)
            outputs.append(torch.bmm(weights.flatten(1, 2), v[:, :end]).view_as(q[:, :, start:end]))
            totals.append(total)
        out = torch.cat(outputs, 2)
        ctx.save_for_backward(q, k, v, visible, out, torch.cat(totals, 2))
        return _unfold(out, batch)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        q, k, v, visible, out, totals = ctx.saved_tensors
        (grad,) = grad_outputs
        batch = grad.shape[0]
        grad = _fold(grad, q.shape[1])
        wide = totals.dtype
        shift = (grad.to(wide) * out.to(wide)).sum(-1, keepdim=True)
        grads_q, grad_k, grad_v = [], torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for start, end in _blocks(q.shape[2]):
            weights = (_scores(q[:, :, start:end], k[:, :end], visible) - totals[:, :, start:end]).exp()
            rows, upstream = q[:, :, start:end].flatten(1, 2), grad[:, :, start:end].flatten(1, 2)
            through = torch.bmm(upstream, v[:, :end].transpose(1, 2)).view_as(weights).to(wide)
            inner = (weights * (through - shift[:, :, start:end]) * q.shape[-1] ** -0.5).to(q.dtype).flatten(1, 2)
            grad_v[:, :end] += torch.bmm(weights.to(q.dtype).flatten(1, 2).transpose(1, 2), upstream)
            grad_k[:, :end] += torch.bmm(inner.transpose(1, 2), rows)
            grads_q.append(torch.bmm(inner, k[:, :end]).view_as(q[:, :, start:end]))
        grad_k, grad_v = (_unfold(x[:, None].to(q.dtype), batch) for x in (grad_k, grad_v))
        return _unfold(torch.cat(grads_q, 2), batch), grad_k, grad_v, None

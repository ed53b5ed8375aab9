"""Causal attention on a CPU by a few batched matrix products, where torch's CPU flash kernel is slow or cannot serve.

Compiled training: the kernel's backward took a quarter of a training step; compiled, this takes less than half of its
time in bfloat16. Soft caps, which the kernel does not know: in training and without gradients, compiled or not.

Queries are taken some rows at a time against the keys that one of these rows sees (with a plain causal mask half of the
full matrix, with a sliding window a band), a kv head's query heads are folded into the rows, so that k and v are never
expanded, and the backward pass computes the weights again from the log-sum-exp as FlashAttention does (Dao et al. 2022):
what is kept is q, k, v, the output and one number a row. benchmarks/attention.py has the ratios.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK_ROWS = 128
MAX_BLOCKS = 16
"""Rows grow beyond BLOCK_ROWS rather than blocks beyond this: a compiler unrolls them."""
KEY_STEP = 64
"""A window's first key is rounded down to a multiple of this: bfloat16's products are a fifth slower on odd widths."""


class _Terms(NamedTuple):
    """What the scores are made with, and how far a query sees; a tuple, because a compiler knows tuples."""

    offset: int
    window: int | None
    scale: float
    softcap: float | None


def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,
    *,
    offset: int = 0,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention; shapes, `scale` and `softcap` as for `AttentionBackend`, `offset` and `window` as for `Causal`.

    `visible`, `[batch or 1, 1, query length, key length]` bool, restricts it further (each query must see some key).

    Scores are accumulated and normalised in float32; from bfloat16 products they are kept to 16 bits of mantissa.
    """
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    terms = _Terms(offset, window, q.shape[-1] ** -0.5 if scale is None else scale, softcap)
    out: Tensor = _BlockedAttention.apply(q, k, v, visible, *terms)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
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


def _blocks(queries: int, keys: int, terms: _Terms) -> list[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that at least one of them sees (and up to KEY_STEP before them)."""
    rows = max(BLOCK_ROWS, -(-queries // MAX_BLOCKS))
    blocks = []
    for start in range(0, queries, rows):
        end = min(start + rows, queries)
        first = 0 if terms.window is None else max(0, start + terms.offset - terms.window + 1)
        blocks.append((slice(start, end), slice(first - first % KEY_STEP, min(end + terms.offset, keys))))
    return blocks


def _scores(q: Tensor, k: Tensor, block: tuple[slice, slice], terms: _Terms, visible: Tensor | None) -> Tensor:
    """A block's scaled and capped scores, of q `[G, R, queries, D]` on k `[G, keys, D]`: -inf where hidden.

    `[G, R, the block's queries, its keys]`. A bfloat16 product is rounded to 8 bits, too few for an exponent; a second
    product that starts from minus the first gives what the rounding lost.
    """
    rows, columns = block
    q, k = q[:, :, rows], k[:, columns]
    folded, keys = q.flatten(1, 2), k.transpose(1, 2)
    product = torch.bmm(folded, keys)
    wide = product.to(torch.promote_types(q.dtype, torch.float32))
    if q.dtype == torch.bfloat16:
        wide = wide + torch.baddbmm(product, folded, keys, beta=-1).to(wide.dtype)
    wide = wide.view(*q.shape[:3], k.shape[1]) * terms.scale
    if terms.softcap is not None:
        wide = terms.softcap * torch.tanh(wide / terms.softcap)
    return torch.where(_seen(block, terms, visible, k), wide, float("-inf"))


def _seen(block: tuple[slice, slice], terms: _Terms, visible: Tensor | None, k: Tensor) -> Tensor:
    """Which of a block's keys each of its queries sees: `[queries, keys]`, or with `visible` `[G or 1, 1, queries, keys]`."""
    rows, columns = block
    keys = torch.arange(columns.start, columns.stop, device=k.device)
    last = torch.arange(rows.start + terms.offset, rows.stop + terms.offset, device=k.device)[:, None]
    seen = keys <= last
    if terms.window is not None:
        seen = seen & (keys > last - terms.window)
    if visible is None:
        return seen
    of_row = visible[:, :, rows, columns] & seen
    return of_row if len(of_row) == 1 else of_row.repeat_interleave(len(k) // len(of_row), dim=0)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, *terms: Any) -> Tensor:
        batch = q.shape[0]
        ctx.terms = terms = _Terms(*terms)
        q, k, v = _fold(q, q.shape[2] // k.shape[2]), _fold(k, 1)[:, 0], _fold(v, 1)[:, 0]
        outputs, totals = [], []
        for block in _blocks(q.shape[2], k.shape[1], terms):
            rows, columns = block
            scores = _scores(q, k, block, terms, visible)
            total = scores.logsumexp(-1, keepdim=True)
            weights = (scores - total).exp().to(q.dtype)
            outputs.append(torch.bmm(weights.flatten(1, 2), v[:, columns]).view_as(q[:, :, rows]))
            totals.append(total)
        out = torch.cat(outputs, 2)
        ctx.save_for_backward(q, k, v, visible, out, torch.cat(totals, 2))
        return _unfold(out, batch)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        q, k, v, visible, out, totals = ctx.saved_tensors
        terms: _Terms = ctx.terms
        (grad,) = grad_outputs
        batch = grad.shape[0]
        grad = _fold(grad, q.shape[1])
        wide = totals.dtype
        shift = (grad.to(wide) * out.to(wide)).sum(-1, keepdim=True)
        grads_q, grad_k, grad_v = [], torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for block in _blocks(q.shape[2], k.shape[1], terms):
            rows, columns = block
            scores = _scores(q, k, block, terms, visible)
            weights = (scores - totals[:, :, rows]).exp()
            queries, upstream = q[:, :, rows].flatten(1, 2), grad[:, :, rows].flatten(1, 2)
            through = torch.bmm(upstream, v[:, columns].transpose(1, 2)).view_as(weights).to(wide)
            inner = weights * (through - shift[:, :, rows]) * terms.scale
            if terms.softcap is not None:
                # c·tanh(s/c) has the derivative 1 - tanh²(s/c); hidden keys' -inf would make it -inf.
                inner = inner * (1 - (scores / terms.softcap).square()).clamp(min=0)
            inner = inner.to(q.dtype).flatten(1, 2)
            grad_v[:, columns] += torch.bmm(weights.to(q.dtype).flatten(1, 2).transpose(1, 2), upstream)
            grad_k[:, columns] += torch.bmm(inner.transpose(1, 2), queries)
            grads_q.append(torch.bmm(inner, k[:, columns]).view_as(q[:, :, rows]))
        grad_k, grad_v = (_unfold(x[:, None].to(q.dtype), batch) for x in (grad_k, grad_v))
        return _unfold(torch.cat(grads_q, 2), batch), grad_k, grad_v, None, *(None for _ in terms)

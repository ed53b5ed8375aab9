"""Cross-entropy and right predictions from hidden states, without the logits of a whole batch ever being in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from apr_train.model.acceleration import never_compiled
from apr_train.model.protocol import LanguageModel

IGNORE = -100
"""Target of a position that does not count."""

CHUNK_ELEMENTS = 64 * 2**20
"""Logits that are in memory at a time, at most."""

SLICE_ELEMENTS = 8 * 2**20
"""Gradients of the weight that are in memory in the narrow dtype at a time, at most."""

CHUNK_ROWS = 256
"""Shorter chunks make the matrix products slower; more rows than these are never one chunk."""


def head_loss(
    model: LanguageModel,
    hidden: Tensor,
    targets: Tensor,
    *,
    scale: float = 1.0,
    compiled: bool = False,
    count: int | None = None,
    is_root: bool = False,
) -> Tensor:
    """Cross entropy of the model's head, summed over the targets that are not `IGNORE`, times `scale`.

    Args:
        model: gives the head's matrix, its bias, what stands in front of them, and the scale and cap behind them.
        hidden: `[positions, hidden]`.
        targets: `[positions]` int64.
        scale: factor on the sum.
        compiled: fuse the softmax with torch.compile.
        count: as in `chunked_cross_entropy`.
        is_root: as in `chunked_cross_entropy`.

    Returns:
        A float32 (float64 for float64) scalar.
    """
    inputs = model.head_input(hidden)
    loss: Tensor
    loss, _ = chunked_cross_entropy(
        inputs,
        model.head_weight,
        model.head_bias,
        targets,
        head_scale=model.head_scale,
        head_softcap=model.head_softcap,
        scale=scale,
        compiled=compiled,
        count=count,
        is_root=is_root,
    )
    return loss


@torch.no_grad()
def right_predictions(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """How many positions' most likely token is the target: an int64 scalar.

    Args:
        model: gives the logits.
        hidden: `[positions, hidden]`.
        targets: `[positions]` int64.
    """
    count = torch.zeros((), dtype=torch.int64, device=targets.device)
    for begin in range(0, targets.numel(), CHUNK_ROWS):
        rows = slice(begin, begin + CHUNK_ROWS)
        count += (model.logits(hidden[rows]).argmax(-1) == targets[rows]).sum()
    return count


@never_compiled
def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    head_scale: float = 1.0,
    head_softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
    compiled: bool = False,
    count: int | None = None,
    is_root: bool = False,
) -> tuple[Tensor, int]:
    """Sum of -log softmax(y)[target] over the rows that count, times `scale`; y = cap · tanh(z / cap).

    z = head_scale · (hidden weightᵀ + bias), and y = z without a cap: the formula of `apr_train.model.head.head_logits`.
    Logits are computed once, some rows at a time, in the autocast dtype if there is one, else in hidden's dtype; the
    softmax is in float32 at least. The gradients of hidden, weight and bias are made on the way and kept for
    the backward pass, as in Liger's fused linear cross-entropy (Hsu et al. 2024). Rows that do not count cost nothing.

    Args:
        hidden: `[rows, hidden]`.
        weight: `[vocab, hidden]`; may be the embedding matrix.
        bias: `[vocab]` or None.
        targets: `[rows]` int64; `IGNORE` where a row does not count.
        head_scale: factor on the logits; one pass over them, in the softmax's dtype, where it is not 1.
        head_softcap: cap of the logits; a pass over them and, not compiled, one more chunk of them in the softmax's dtype.
        scale: factor on the sum, 1 / tokens of the step, say; free here, a pass over weight's gradient afterwards.
        chunk: rows at a time; by default half of them or `CHUNK_ROWS`, but never more than `CHUNK_ELEMENTS` logits.
        compiled: fuse the softmax with torch.compile (takes seconds the first time, and a C++ compiler on a CPU).
        count: how many rows count, where the caller knows; None: they are counted, for which a GPU's host waits.
        is_root: whether the sum, or a sum that it is a term of, is what the backward pass begins at. That pass then need not
            look by what the gradients are to be multiplied, for which a GPU's host waits.

    Returns:
        The scaled sum, a float32 (float64 for float64) scalar, and the number of rows that count.
    """
    keep = targets != IGNORE
    count = int(keep.sum()) if count is None else count
    if count < targets.numel():
        kept = torch.nonzero_static(keep, size=count).squeeze(1)
        hidden, targets = hidden[kept], targets[kept]
    rows = chunk or _chunk_rows(targets.numel(), weight.shape[0])
    loss: Tensor = _FusedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        hidden,
        weight,
        bias,
        targets,
        head_scale,
        head_softcap,
        scale,
        _even(targets.numel(), rows),
        compiled,
        torch.is_grad_enabled(),
        is_root,
    )
    return loss, count


def _chunk_rows(total: int, vocab: int) -> int:
    """At most half of all rows, unless they are few: the float32 logits of the whole batch are never in memory."""
    return min(max(1, CHUNK_ELEMENTS // vocab), max(CHUNK_ROWS, -(-total // 2)))


def _even(total: int, rows: int) -> int:
    """The chunk size of equal chunks that are at most `rows` long."""
    chunks = -(-total // rows) or 1
    return -(-total // chunks) or 1


def _softmax_step(logits: Tensor, targets: Tensor, head_scale: float, softcap: float | None) -> Tensor:
    """Loss sum of one chunk; to be compiled.

    Args:
        logits: `[rows, vocab]`, the products p of the head's matrix; overwritten with dloss/dp, but for the constant factor
            `head_scale` of it: `_Gradients.add` has it for nothing.
        targets: `[rows]`.
        head_scale: z = head_scale · p.
        softcap: the softmax is of softcap · tanh(z / softcap), whose derivative is 1 - tanh²; of z when None.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tanh = None
    if softcap is not None:
        tanh = (wide * (head_scale / softcap)).tanh()
        wide = tanh * softcap
    elif head_scale != 1.0:
        wide = wide * head_scale
    total = wide.logsumexp(-1, keepdim=True)
    loss = (total - wide.gather(1, targets[:, None])).sum()
    target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    gradient = (wide - total).exp() - target
    logits.copy_(gradient if tanh is None else gradient * (1 - tanh.square()))
    return loss


def _softmax_step_eager(logits: Tensor, targets: Tensor, head_scale: float, softcap: float | None) -> Tensor:
    """The same with fewer passes over memory where nothing fuses them."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tanh = None
    if softcap is not None:
        tanh = wide.mul_(head_scale / softcap).tanh_()
        wide = tanh * softcap
    elif head_scale != 1.0:
        wide.mul_(head_scale)
    total = wide.logsumexp(-1, keepdim=True)
    loss = (total - wide.gather(1, targets[:, None])).sum()
    wide.sub_(total).exp_()
    wide.scatter_add_(1, targets[:, None], wide.new_full((1, 1), -1.0).expand(targets.numel(), 1))
    if tanh is not None:
        wide.addcmul_(wide, tanh.square_(), value=-1)
    if wide is not logits:
        logits.copy_(wide)
    return loss


@cache
def _compiled_step() -> Callable[[Tensor, Tensor, float, float | None], Tensor]:
    return torch.compile(_softmax_step)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """Of a matrix product with `hidden`: autocast's, inside it."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _Gradients:
    """Gradients summed over the chunks, in float32 except where weight and arithmetic are both bfloat16."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        same = dtype == weight.dtype and dtype != torch.float16
        self.hidden = torch.empty_like(hidden)
        self.weight = torch.empty_like(weight, dtype=weight.dtype if same else torch.float32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))
        self.in_place = same
        self.started = False

    def add(self, rows: slice, logits: Tensor, hidden: Tensor, weight: Tensor, scale: float) -> None:
        """Take in one chunk: `logits` is the gradient of the chunk's logits."""
        self.hidden[rows] = (logits @ weight).mul_(scale)
        if self.in_place:
            torch.addmm(self.weight, logits.T, hidden, beta=int(self.started), alpha=scale, out=self.weight)
        else:
            self._widen(logits, hidden, scale)
        if self.bias is not None:
            self.bias.add_(logits.sum(0, dtype=self.bias.dtype), alpha=scale)
        self.started = True

    def _widen(self, logits: Tensor, hidden: Tensor, scale: float) -> None:
        """Add to the weight's gradient some tokens of the vocabulary at a time: the narrow product stays small."""
        tokens = max(1, SLICE_ELEMENTS // hidden.shape[1])
        for part, sums in zip(torch.split(logits, tokens, dim=1), torch.split(self.weight, tokens), strict=True):
            if self.started:
                sums.add_(part.T @ hidden, alpha=scale)
            else:
                torch.mul(part.T @ hidden, scale, out=sums)


class _FusedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head_scale: float,
        softcap: float | None,
        scale: float,
        chunk: int,
        compiled: bool,
        training: bool,
        is_root: bool,
    ) -> Tensor:
        ctx.is_root = is_root
        dtype = compute_dtype(hidden)
        matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
        step = _compiled_step() if compiled else _softmax_step_eager
        gradients = _Gradients(hidden, weight, bias, dtype) if training else None
        loss = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
        buffer = torch.empty(min(chunk, len(hidden)), len(weight), dtype=dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, targets.numel(), chunk):
                rows = slice(start, start + chunk)
                piece = hidden[rows].to(dtype)
                logits = torch.mm(piece, matrix.T, out=buffer[: len(piece)])
                logits = logits if offset is None else logits.add_(offset)
                loss += step(logits, targets[rows], head_scale, softcap)
                if gradients is not None:
                    gradients.add(rows, logits, piece, matrix, scale * head_scale)
        if gradients is not None:
            _save(ctx, gradients, weight, bias)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (factor,) = grad_outputs
        saved = ctx.saved_tensors
        if not ctx.is_root and factor.item() != 1.0:
            saved = [tensor if tensor is None else tensor * factor.to(tensor.dtype) for tensor in saved]
        return (*saved, *(None,) * 8)


def _save(ctx: Any, gradients: _Gradients, weight: Tensor, bias: Tensor | None) -> None:
    if not gradients.started:  # no row counts
        gradients.weight.zero_()
    ctx.save_for_backward(
        gradients.hidden,
        gradients.weight.to(weight.dtype),
        None if bias is None or gradients.bias is None else gradients.bias.to(bias.dtype),
    )

"""What each token costs a model, without gradients: logits some rows at a time, their sums while they are in the cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from apr_train.model.loss import IGNORE, compute_dtype
from apr_train.model.protocol import LanguageModel

ROWS = 512
"""Positions whose logits are in memory at a time: fewer make the matrix product slower."""
LOGITS = 64 * 2**20
"""Logits that are in memory at a time, at most."""
PIECE = 2**18
"""Logits that are summed up at a time: in float32 they fit a core's second cache."""


@torch.no_grad()
def token_nats(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(y)[target] of each position, y as `apr_train.model.loss.head_loss` has it; 0 where the target is `IGNORE`.

    Args:
        model: gives the head.
        hidden: `[positions, hidden]`.
        targets: `[positions]` int64.

    Returns:
        `[positions]` in float32 (float64 for float64). Logits are in the dtype of the matrix product, the rest is in float32
        at least.
    """
    counts = targets != IGNORE
    inputs, wanted = model.head_input(hidden[counts]), targets[counts]
    nats = torch.zeros(targets.shape, dtype=torch.promote_types(hidden.dtype, torch.float32), device=targets.device)
    rows = max(1, min(ROWS, LOGITS // model.head_weight.shape[0]))
    weight = model.head_weight.to(compute_dtype(model.head_weight))  # once, where autocast would do so for each product
    found = [_of_rows(model, weight, *part) for part in zip(torch.split(inputs, rows), torch.split(wanted, rows), strict=True)]
    nats[counts] = torch.cat([nats.new_zeros(0), *found])
    return nats


def _of_rows(model: LanguageModel, weight: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(inputs, weight)
    if model.head_bias is not None:  # after the product's rounding, as in training
        logits = logits.add_(model.head_bias.to(logits.dtype))
    rows = max(1, PIECE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    pieces = zip(torch.split(logits, rows), torch.split(targets[:, None], rows), strict=True)
    return torch.cat([_of_piece(model, *piece) for piece in pieces])


def _of_piece(model: LanguageModel, logits: Tensor, targets: Tensor) -> Tensor:
    """The scale and the cap are put on in the wide dtype, as in training."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if model.head_softcap is not None:
        wide = (wide * (model.head_scale / model.head_softcap)).tanh_().mul_(model.head_softcap)
    elif model.head_scale != 1.0:
        wide = wide * model.head_scale
    return wide.logsumexp(-1) - wide.gather(1, targets)[:, 0]

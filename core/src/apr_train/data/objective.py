"""From a batch to its loss: the mask that an objective needs, and the positions that count."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from apr_train.data.batch import IGNORED, Batch
from apr_train.family.card import Objective
from apr_train.model.attention.masks import Bidirectional, Causal, Documents, Mask
from apr_train.model.loss import chunked_cross_entropy
from apr_train.model.protocol import LanguageModel


def mask_of(batch: Batch, objective: Objective) -> Mask:
    """The attention mask of one batch."""
    if objective == "masked-lm":
        return Bidirectional(batch.keep)
    if batch.document_ids is not None:
        return Documents(batch.document_ids, batch.document_lengths)
    return Causal()


def scaled_loss(model: nn.Module, batch: Batch, objective: Objective, *, scale: float, compiled: bool = False) -> Tensor:
    """Cross entropy summed over the batch's target positions, times `scale`; the logits are never whole in memory."""
    hidden, targets = predicted_positions(model, batch, objective)
    return head_loss(model, hidden, targets, scale=scale, compiled=compiled)


def head_loss(model: nn.Module, hidden: Tensor, targets: Tensor, *, scale: float = 1.0, compiled: bool = False) -> Tensor:
    """The same from hidden states `[positions, hidden]` and targets `[positions]`: a float32 scalar."""
    head = cast(LanguageModel, model)
    inputs = head.head_input(hidden)
    loss: Tensor
    loss, _ = chunked_cross_entropy(inputs, head.head_weight, head.head_bias, targets, scale=scale, compiled=compiled)
    return loss


def predicted_positions(model: nn.Module, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor]:
    """Hidden states `[positions, hidden]` and targets `[positions]`; masked-lm keeps the masked positions only."""
    hidden = cast(LanguageModel, model).hidden_states(batch.tokens, mask=mask_of(batch, objective))
    targets = batch.targets
    if objective == "masked-lm":
        chosen = targets != IGNORED
        return hidden[chosen], targets[chosen]
    return hidden.flatten(0, 1), targets.flatten()


@torch.no_grad()
def right_predictions(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """How many positions' most likely token is the target: int64 scalar."""
    head, count = cast(LanguageModel, model), torch.zeros((), dtype=torch.int64, device=targets.device)
    for begin in range(0, targets.numel(), 256):
        logits = head.logits(hidden[begin : begin + 256])
        count += (logits.argmax(-1) == targets[begin : begin + 256]).sum()
    return count

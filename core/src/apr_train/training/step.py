"""One optimizer step: gradients of several passes, normalised together, checked, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from attrs import frozen
from torch import Tensor, nn

from apr_train import rules
from apr_train.data.batch import Batch
from apr_train.data.objectives import Objective
from apr_train.errors import RunError
from apr_train.model.device import Precision
from apr_train.model.loss import head_loss
from apr_train.model.protocol import LanguageModel


class NonFiniteError(RunError):
    """A loss, a gradient or a weight is NaN or infinite (INV-TRAIN-007); after a loss or gradient of a step, the weights are
    those of the step before."""


@frozen(kw_only=True)
class StepResult:
    """What a step did."""

    loss: float
    """Mean over the step's target tokens, before the update, nats."""
    grad_norm: float
    """L2 norm of the whole gradient, before clipping."""
    targets: int
    tokens: int


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    objective: Objective,
    precision: Precision,
    clip_norm: float,
    step: int,
    compiled: bool = False,
) -> StepResult:
    """Take one step on the batches together: each target token has the same weight, whichever batch it is in.

    Raises:
        NonFiniteError: before the optimizer has changed anything.
        RunError: when no position is to be predicted (INV-TRAIN-011).
    """
    targets = sum(batch.target_count for batch in batches)
    if targets == 0:
        raise RunError("the step has nothing to predict", rule=rules.INV_TRAIN_011, where=f"step {step}")
    optimizer.zero_grad(set_to_none=True)
    loss = _accumulate(model, batches, targets, objective, precision, compiled)
    norm = clip(model, clip_norm)
    measured = torch.stack([loss, norm.to(loss.device)]).tolist()
    if not all(map(math.isfinite, measured)):
        raise _non_finite(model, step, *measured)
    optimizer.step()
    tokens = sum(batch.tokens.numel() for batch in batches)
    return StepResult(loss=measured[0], grad_norm=measured[1], targets=targets, tokens=tokens)


def _accumulate(
    model: nn.Module,
    batches: Sequence[Batch],
    targets: int,
    objective: Objective,
    precision: Precision,
    compiled: bool,
) -> Tensor:
    """Backward through each batch; the summed gradients are those of the mean loss over all of them."""
    language_model = cast(LanguageModel, model)
    total = None
    for batch in batches:
        with precision.context(batch.tokens.device):
            hidden, wanted = objective.predicted(language_model, batch)
            loss = head_loss(language_model, hidden, wanted, scale=1 / targets, compiled=compiled)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        part = loss.detach().float()
        total = part if total is None else total + part
    return total if total is not None else torch.zeros(())


def clip(model: nn.Module, limit: float) -> Tensor:
    """Scale the gradients down to norm `limit` if they are above it (0: never); returns the norm before, float32.

    Gradients with a non-finite norm are left as they are.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    value = float(norm)
    if limit > 0 and math.isfinite(value) and value > limit:
        torch._foreach_mul_(gradients, limit / (value + 1e-6))  # the constant is torch's clip_grad_norm_'s
    return norm


def _non_finite(model: nn.Module, step: int, loss: float, norm: float) -> NonFiniteError:
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    what = f"loss {loss}, gradient norm {norm}"
    return NonFiniteError(
        "the loss or a gradient is not finite",
        rule=rules.INV_TRAIN_007,
        where=f"step {step}",
        found=f"{what}; gradients not finite: {shown or 'none'}",
    )

"""One optimizer step: gradients of several passes, normalised together, checked, clipped, applied."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from attrs import frozen
from torch import Tensor, nn

from apr_train import rules
from apr_train.data.batch import Batch
from apr_train.data.objectives import Objective
from apr_train.errors import PluginError, RunError
from apr_train.model.device import Precision
from apr_train.model.loss import head_loss
from apr_train.model.protocol import LanguageModel
from apr_train.model.sharding import exchange_gradients, local
from apr_train.model.tied_rows import rows_apart
from apr_train.training.optimizer.make import Optimizers
from apr_train.training.processes import Processes

_NORM_ELEMENTS = 2**18
"""Elements of a narrow gradient whose norm is computed at a time: what a cache holds in float32."""


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
    aux_loss: float | None = None
    """Mean of the model's auxiliary loss over the step's tokens, without its factor; None for a model that has none."""
    skipped: str | None = None
    """Why the optimizer changed nothing; None: it took the step."""


def train_step(
    model: nn.Module,
    optimizer: Optimizers | torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    objective: Objective,
    precision: Precision,
    clip_norm: float,
    step: int,
    compiled: bool = False,
    judge: Callable[[float, float], str | None] | None = None,
    processes: Processes | None = None,
) -> StepResult:
    """Take one step on the batches together: each target token has the same weight, whichever batch it is in.

    What the model has of auxiliary loss is added to the cross entropy with its factor; `StepResult.loss` is the latter alone.

    Args:
        step: its number, from 1 on; after the backward pass of step 1 every parameter must have a gradient.
        judge: says of a loss and a gradient norm why the optimizer shall change nothing; None: it always takes the step.
        processes: those that have the other rows of each batch; the result is of all rows.

    Raises:
        NonFiniteError: before the optimizer has changed anything.
        RunError: when no position is to be predicted (INV-TRAIN-011), or when the loss does not depend on a parameter
            (TRAIN-001); the optimizer has changed nothing.
        PluginError: for an auxiliary loss that is none.
    """
    processes = processes or Processes()
    targets, tokens = processes.total(
        sum(batch.target_count for batch in batches), sum(batch.tokens.numel() for batch in batches)
    )
    if targets == 0:
        raise RunError("the step has nothing to predict", rule=rules.INV_TRAIN_011, where=f"step {step}")
    optimizer.zero_grad(set_to_none=True)
    own, own_auxiliary = _accumulate(model, batches, targets, tokens, objective, precision, compiled)
    if step == 1:
        require_gradients(model, step)
    norm = clip(model, clip_norm, processes)
    loss, *auxiliary = processes.sums([own, *([] if own_auxiliary is None else [own_auxiliary])])
    measured = torch.stack([loss, norm.to(loss.device), *auxiliary]).tolist()
    if not all(map(math.isfinite, measured)):
        raise _non_finite(model, step, measured, float(own), processes)
    skipped = None if judge is None else processes.first_says(judge(measured[0], measured[1]))
    if skipped is None:
        optimizer.step()
    return StepResult(
        loss=measured[0],
        grad_norm=measured[1],
        targets=targets,
        tokens=tokens,
        aux_loss=measured[2] if auxiliary else None,
        skipped=skipped,
    )


def _accumulate(
    model: nn.Module,
    batches: Sequence[Batch],
    targets: int,
    tokens: int,
    objective: Objective,
    precision: Precision,
    compiled: bool,
) -> tuple[Tensor, Tensor | None]:
    """Backward through each batch; the summed gradients are those of the mean loss over all of them.

    Several processes exchange gradients once, with the last batch; `targets` and `tokens` are then those of all of them.

    Returns:
        The mean cross entropy over the targets, and the mean auxiliary loss over the tokens, without its factor: of several
        processes, this one's part of the means.
    """
    entropies, auxiliaries = [], []
    for batch in batches:
        exchange_gradients(model, now=batch is batches[-1])
        with rows_apart(model):
            entropy, auxiliary = _backward(model, batch, targets, tokens, objective, precision, compiled)
        entropies.append(entropy)
        if auxiliary is not None:
            auxiliaries.append(auxiliary)
    return _sum(entropies), _sum(auxiliaries) if auxiliaries else None


def _backward(
    model: nn.Module,
    batch: Batch,
    targets: int,
    tokens: int,
    objective: Objective,
    precision: Precision,
    compiled: bool,
) -> tuple[Tensor, Tensor | None]:
    """One batch of a step of so many targets and tokens: adds to the gradients; returns its part of the two means."""
    language_model, losses = cast(LanguageModel, model), dict[str, Tensor]()
    with precision.context(batch.tokens.device):
        hidden, wanted = objective.predicted(language_model, batch, losses)
        loss = head_loss(language_model, hidden, wanted, scale=1 / targets, compiled=compiled)
    entropy, shared = loss.detach(), None
    if losses:
        auxiliary, factor = auxiliary_loss(language_model, losses)
        share = batch.tokens.numel() / tokens
        shared = share * auxiliary.detach()
        loss = loss + factor * share * auxiliary if factor else loss
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return entropy, shared


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


AUXILIARY, FACTOR = "aux_loss", "router_aux_loss_coef"
"""The one loss beside the cross entropy that training knows, and the field of the config that holds its factor."""


def auxiliary_loss(model: LanguageModel, losses: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """The auxiliary loss that a model has written, in float32 at least, and its factor; at 0.0 it is only measured.

    Raises:
        PluginError: when it is no scalar, when its name is another, or when the config has no factor for it.
    """
    where, config = f"{type(model).__name__}.hidden_states", model.config
    if set(losses) != {AUXILIARY}:
        problem = "losses gets one entry at most"
        raise PluginError(problem, where=where, expected=AUXILIARY, found=", ".join(sorted(losses)))
    loss, factor = losses[AUXILIARY], getattr(config, FACTOR, None)
    if loss.dim():
        raise PluginError(f"{AUXILIARY} is no scalar", where=where, expected="the mean over the batch", found=tuple(loss.shape))
    if factor is None:
        problem = f"{AUXILIARY} without its factor"
        raise PluginError(problem, where=where, expected=f"a field {FACTOR} in the config", found=type(config).__name__)
    return loss.to(torch.promote_types(loss.dtype, torch.float32)), factor


def require_gradients(model: nn.Module, step: int) -> None:
    """Refuse parameters that the backward pass has not reached; frozen ones are left alone.

    A gradient that is zero is one: of a stack of experts, those that no token went to have it.

    Raises:
        RunError: TRAIN-001, naming all of them.
    """
    silent = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if silent:
        raise RunError(
            "the loss does not depend on every parameter: these would never be trained",
            rule=rules.TRAIN_001,
            where=f"step {step}",
            expected="a gradient for each",
            found=f"none for {len(silent)} of them: {', '.join(silent)}",
            hint="Use them in the model's forward pass, or leave them out of the model and of its name map; one that shall "
            "stay as it is has requires_grad False.",
        )


def clip(model: nn.Module, limit: float, processes: Processes | None = None) -> Tensor:
    """Scale the gradients down to norm `limit` if they are above it (0: never); returns the norm before, in float32 at least.

    Gradients with a non-finite norm are left as they are. Those of several processes have one norm.
    """
    gradients = [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm: Tensor = (processes or Processes()).norm(torch.linalg.vector_norm(torch.stack([_norm(g) for g in gradients])))
    value = float(norm)
    if limit > 0 and math.isfinite(value) and value > limit:
        torch._foreach_mul_(gradients, limit / (value + 1e-6))  # the constant is torch's clip_grad_norm_'s
    return norm


def _norm(gradient: Tensor) -> Tensor:
    """The L2 norm in float32 at least; of a narrow gradient a piece at a time, for torch on a CPU copies all that it widens."""
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    if dtype == gradient.dtype or gradient.device.type != "cpu":
        return torch.linalg.vector_norm(gradient, dtype=dtype)
    pieces = gradient.reshape(-1).split(_NORM_ELEMENTS)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(piece, dtype=dtype) for piece in pieces]))


def _non_finite(model: nn.Module, step: int, measured: Sequence[float], own: float, processes: Processes) -> NonFiniteError:
    """The error with what is not finite: gradients by name, and of several processes those whose own loss, `own`, is not."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(local(parameter.grad)).all())
    ]
    told = processes.everyone({"names": names, "finite": math.isfinite(own)})
    names = list(dict.fromkeys(name for item in told for name in cast(list[str], item["names"])))
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    loss, norm, *auxiliary = measured
    what = f"loss {loss}, gradient norm {norm}" + "".join(f", auxiliary loss {value}" for value in auxiliary)
    ranks = [str(rank) for rank, item in enumerate(told) if not item["finite"]] if len(told) > 1 else []
    where = f"; the rows of rank {', '.join(ranks)}" if ranks else ""
    return NonFiniteError(
        "the loss or a gradient is not finite",
        rule=rules.INV_TRAIN_007,
        where=f"step {step}",
        found=f"{what}; gradients not finite: {shown or 'none'}{where}",
    )

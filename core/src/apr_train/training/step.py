"""One optimizer step: gradients of several passes, normalised together, checked, clipped, applied."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from apr_train import rules
from apr_train.data.batch import Batch
from apr_train.data.objectives import Objective
from apr_train.errors import PluginError, RunError
from apr_train.model.device import Precision
from apr_train.model.loss import head_loss
from apr_train.model.moe import Losses
from apr_train.model.protocol import LanguageModel
from apr_train.model.sharding import exchange_gradients, is_sharded, local, whole_gradients
from apr_train.model.tied_rows import rows_apart
from apr_train.training.optimizer.in_backward import BrokenGradientError, UpdatesInBackward, norm_of
from apr_train.training.optimizer.make import Optimizers
from apr_train.training.processes import Processes


class NonFiniteError(RunError):
    """A loss, a gradient or a weight is NaN or infinite (INV-TRAIN-007); after a loss or gradient of a step, the weights are
    those of the step before, unless the step has `changed` some."""

    changed = False
    """Whether blocks behind the gradient that is not finite have been updated: the state is none that could be gone on with."""


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
        NonFiniteError: before the optimizer has changed anything; of gradients that are updated with on the way, before
            the update of their block.
        RunError: when no position is to be predicted (INV-TRAIN-011), the optimizer has changed nothing then; or when the loss
            does not depend on a parameter (TRAIN-001).
        PluginError: for an auxiliary loss that is none.
    """
    processes = processes or Processes()
    targets, tokens = processes.total(
        sum(batch.target_count for batch in batches), sum(batch.tokens.numel() for batch in batches)
    )
    if targets == 0:
        raise RunError("the step has nothing to predict", rule=rules.INV_TRAIN_011, where=f"step {step}")
    optimizer.zero_grad(set_to_none=True)
    work = _Pass(
        model=model,
        objective=objective,
        precision=precision,
        compiled=compiled,
        targets=targets,
        tokens=tokens,
        passes=len(batches),
        processes=processes,
    )
    updates = None
    alone = isinstance(optimizer, Optimizers) and len(batches) == 1 and not processes.several
    if alone and clip_norm == 0 and judge is None:
        updates, work = UpdatesInBackward(model, optimizer), evolve(work, look=_require_finite_loss(step))
    own, own_auxiliary, norm = _take(work, batches, updates, step)
    loss, *auxiliary = processes.sums([own, *([] if own_auxiliary is None else [own_auxiliary])])
    measured = torch.stack([loss, norm.to(loss.device), *auxiliary]).tolist()  # the one time that a GPU's host waits
    if not all(map(math.isfinite, measured)):
        raise _non_finite(model, step, measured, float(own), processes)
    skipped = None if judge is None else processes.first_says(judge(measured[0], measured[1]))
    if skipped is None and updates is None:
        clip(model, clip_norm, measured[1])
        optimizer.step()
    return StepResult(
        loss=measured[0],
        grad_norm=measured[1],
        targets=targets,
        tokens=tokens,
        aux_loss=measured[2] if auxiliary else None,
        skipped=skipped,
    )


@frozen(kw_only=True)
class _Pass:
    """What the batches of a step have in common."""

    model: nn.Module
    objective: Objective
    precision: Precision
    compiled: bool
    targets: int
    """Of the whole step, on all processes; so are tokens."""
    tokens: int
    passes: int
    """Batches of the step, on each process."""
    processes: Processes
    look: Callable[[Tensor], None] | None = None
    """Is given each batch's loss before the backward pass, and may raise."""


def _take(
    work: _Pass, batches: Sequence[Batch], updates: UpdatesInBackward | None, step: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The two means of `_accumulate`, and the norm of all gradients, which are there afterwards if nothing updates with them.

    Raises:
        NonFiniteError: for a gradient that is updated with on the way.
        RunError: TRAIN-001.
    """
    try:
        with updates or nullcontext():
            own, own_auxiliary = _accumulate(work, batches)
        work.processes.add_up(whole_gradients(work.model))
        if step == 1:
            require_gradients(work.model, step, reached=() if updates is None else updates.norms)
        norm = gradient_norm(work.model, work.processes) if updates is None else updates.finish()
    except BrokenGradientError as error:
        raise _broken(error, step) from error
    return own, own_auxiliary, norm


def _accumulate(work: _Pass, batches: Sequence[Batch]) -> tuple[Tensor, Tensor | None]:
    """Backward through each batch; the summed gradients are those of the mean loss over all of them.

    Several processes exchange gradients once, with the last batch.

    Returns:
        The mean cross entropy over the targets, and the mean auxiliary loss over the tokens, without its factor: of several
        processes, this one's part of the means.
    """
    entropies, auxiliaries = [], []
    for batch in batches:
        exchange_gradients(work.model, now=batch is batches[-1])
        with rows_apart(work.model):
            entropy, auxiliary = _backward(work, batch)
        entropies.append(entropy)
        if auxiliary is not None:
            auxiliaries.append(auxiliary)
    return _sum(entropies), _sum(auxiliaries) if auxiliaries else None


def _backward(work: _Pass, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """One batch: adds to the gradients, and gives its part of the two means."""
    model, losses = cast(LanguageModel, work.model), work.processes.losses()
    with work.precision.context(batch.tokens.device):
        hidden, wanted = work.objective.predicted(model, batch, losses)
        options: dict[str, Any] = {"compiled": work.compiled, "count": batch.target_count, "is_root": True}
        loss = head_loss(model, hidden, wanted, scale=1 / work.targets, **options)
    entropy, shared = loss.detach(), None
    if losses:
        auxiliary, factor = auxiliary_loss(model, losses)
        share = batch.tokens.numel() / work.tokens
        shared = share * auxiliary.detach()
        if isinstance(losses, Losses) and losses.is_of_all:
            share = 1 / work.passes  # each process has the whole pass's loss, and the gradient of its part of that
        loss = loss + factor * share * auxiliary if factor else loss
    if work.look is not None:
        work.look(loss)
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


def _require_finite_loss(step: int) -> Callable[[Tensor], None]:
    """Refuses a loss before anything is updated with it."""

    def look(loss: Tensor) -> None:
        if not math.isfinite(value := float(loss.detach())):
            problem, where = "the loss is not finite", f"step {step}"
            raise NonFiniteError(problem, rule=rules.INV_TRAIN_007, where=where, found=f"loss {value}")

    return look


def _broken(error: BrokenGradientError, step: int) -> NonFiniteError:
    """The error of a gradient that is not finite, when blocks behind it may have been updated."""
    problem = "a gradient is not finite"
    found = f"gradients not finite: {_listed(error.names)}"
    told = NonFiniteError(problem, rule=rules.INV_TRAIN_007, where=f"step {step}", found=found)
    told.changed = error.changed
    return told


def require_gradients(model: nn.Module, step: int, *, reached: Collection[nn.Parameter] = ()) -> None:
    """Refuse parameters that the backward pass has not reached; frozen ones are left alone.

    A gradient that is zero is one: of a stack of experts, those that no token went to have it.

    Args:
        reached: parameters whose gradient was there and is not any more.

    Raises:
        RunError: TRAIN-001, naming all of them.
    """
    there = set(reached)
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None and parameter not in there
    ]
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


def gradient_norm(model: nn.Module, processes: Processes | None = None) -> Tensor:
    """The L2 norm of all gradients, in float32 at least; those of several processes have one."""
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not found:
        return torch.zeros(())
    pieces, whole = ([local(item) for item in found if is_sharded(item) == sharded] for sharded in (True, False))
    return (processes or Processes()).norm(*(_norm(some, like=local(found[0])) for some in (pieces, whole)))


def clip(model: nn.Module, limit: float, norm: float) -> None:
    """Scale gradients of such a norm down to norm `limit` if that is above it; 0 never does, nor a norm that is not finite."""
    if 0 < limit < norm and math.isfinite(norm):
        torch._foreach_mul_(_gradients(model), limit / (norm + 1e-6))  # the constant is torch's clip_grad_norm_'s


def _gradients(model: nn.Module) -> list[Tensor]:
    return [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]


def _norm(gradients: Sequence[Tensor], like: Tensor) -> Tensor:
    norms = [norm_of(item) for item in gradients]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else like.new_zeros((), dtype=torch.float32)


def _non_finite(model: nn.Module, step: int, measured: Sequence[float], own: float, processes: Processes) -> NonFiniteError:
    """The error with what is not finite: gradients by name, and of several processes those whose own loss, `own`, is not."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(local(parameter.grad)).all())
    ]
    told = processes.everyone({"names": names, "finite": math.isfinite(own)})
    names = list(dict.fromkeys(name for item in told for name in cast(list[str], item["names"])))
    loss, norm, *auxiliary = measured
    what = f"loss {loss}, gradient norm {norm}" + "".join(f", auxiliary loss {value}" for value in auxiliary)
    ranks = [str(rank) for rank, item in enumerate(told) if not item["finite"]] if len(told) > 1 else []
    where = f"; the rows of rank {', '.join(ranks)}" if ranks else ""
    return NonFiniteError(
        "the loss or a gradient is not finite",
        rule=rules.INV_TRAIN_007,
        where=f"step {step}",
        found=f"{what}; gradients not finite: {_listed(names) or 'none'}{where}",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

"""An optimizer's state as named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from apr_train.errors import RunError
from apr_train.run.folder import OPTIMIZER
from apr_train.training.optimizer.bfloat16 import STEP, Float32Updates
from apr_train.training.optimizer.make import MOMENTS, Optimizers, kind_of

State = dict[str, Tensor]


def optimizer_tensors(model: nn.Module, optimizer: Optimizers) -> State:
    """The state as `exp_avg.{parameter}`, `momentum_buffer.{parameter}`, …; empty before the first step.

    A parameter without any gradient so far has the state that it starts with, so that the file is complete.
    """
    if not any(part.state for part in optimizer.parts):
        return {}
    owners = _owners(model, optimizer)
    return {
        f"{key}.{name}": value
        for name, (part, parameter) in owners.items()
        for key, value in (part.state.get(parameter) or _blank(part, parameter)).items()
    }


def restore_optimizer(model: nn.Module, optimizer: Optimizers, tensors: Mapping[str, Tensor], *, step: int) -> None:
    """Put a saved state back, bit for bit.

    Args:
        model: its trained parameters are those of the optimizer.
        optimizer: gets the state.
        tensors: as `optimizer_tensors` gives them.
        step: steps that were done; before the first one there is no state.

    Raises:
        RunError: if a tensor is absent, belongs to no parameter, or has another shape or dtype than it.
    """
    owners = _owners(model, optimizer) if step else {}
    strange = sorted(set(tensors) ^ {f"{key}.{name}" for name, owner in owners.items() for key in _blank(*owner)})
    if strange:
        found = f"{strange[0]}, which has no parameter" if strange[0] in tensors else f"no {strange[0]}"
        raise RunError("the optimizer state is of another model", where=OPTIMIZER, found=found)
    for name, (part, parameter) in owners.items():
        blank = _blank(part, parameter)
        part.state[parameter] = {key: _fitting(tensors, f"{key}.{name}", like) for key, like in blank.items()}


def _owners(model: nn.Module, optimizer: Optimizers) -> dict[str, tuple[torch.optim.Optimizer, nn.Parameter]]:
    """Every trained parameter by name, with the optimizer that has it, in the model's order."""
    parts = {parameter: part for part in optimizer.parts for group in part.param_groups for parameter in group["params"]}
    return {name: (parts[parameter], parameter) for name, parameter in model.named_parameters() if parameter in parts}


def _blank(part: torch.optim.Optimizer, parameter: nn.Parameter) -> State:
    """The state of a parameter before its first update."""
    if isinstance(part, Float32Updates):
        return part.blank(parameter)
    kind = kind_of(part)
    steps = {STEP: torch.zeros((), device=parameter.device)} if kind == "AdamW" else {}
    return steps | {key: torch.zeros_like(parameter) for key in MOMENTS[kind]}


def _fitting(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    value = tensors[name]
    if value.shape != like.shape or value.dtype != like.dtype:
        expected, found = f"{like.dtype} {list(like.shape)}", f"{value.dtype} {list(value.shape)}"
        raise RunError(f"{name} does not fit", where=OPTIMIZER, expected=expected, found=found)
    return value.to(like.device)

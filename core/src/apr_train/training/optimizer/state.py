"""An optimizer's state as named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from apr_train.errors import RunError
from apr_train.model.sharding import is_sharded, keep_piece, place
from apr_train.run.folder import OPTIMIZER
from apr_train.training.optimizer.bfloat16 import MASTER, STEP, Float32Updates
from apr_train.training.optimizer.make import MOMENTS, Optimizers, kind_of

State = dict[str, Tensor]
_Owner = tuple[torch.optim.Optimizer, nn.Parameter]


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


def restore_optimizer(
    model: nn.Module, optimizer: Optimizers, tensors: Mapping[str, Tensor], *, step: int, convert: bool = False
) -> None:
    """Put a saved state back, bit for bit.

    Args:
        model: its trained parameters are those of the optimizer.
        optimizer: gets the state.
        tensors: as `optimizer_tensors` gives them.
        step: steps that were done; before the first one there is no state.
        convert: whether the weights may be of another type than they were: a state of another floating type is rounded to
            nearest, a master copy that is not kept any more becomes the weight, and one that was not kept begins as the weight.

    Raises:
        RunError: if a tensor is absent, belongs to no parameter, or has another shape or dtype than it.
    """
    owners = _owners(model, optimizer) if step else {}
    blanks = {name: _blank(*owner) for name, owner in owners.items()}
    saved = _converted(tensors, owners, step) if convert else tensors
    strange = sorted(set(saved) ^ {f"{key}.{name}" for name, blank in blanks.items() for key in blank})
    if strange:
        found = f"{strange[0]}, which has no parameter" if strange[0] in saved else f"no {strange[0]}"
        raise RunError("the optimizer state is of another model", where=OPTIMIZER, found=found)
    for name, (part, parameter) in owners.items():
        part.state[parameter] = {key: _fitting(saved, f"{key}.{name}", like) for key, like in blanks[name].items()}


def _converted(tensors: Mapping[str, Tensor], owners: Mapping[str, _Owner], step: int) -> State:
    """A state in the types, and with the parts, that the present optimizer has."""
    saved = dict(tensors)
    for name, (part, parameter) in owners.items():
        blank = _blank(part, parameter)
        wide, count = (saved.pop(f"{key}.{name}", None) for key in (MASTER, STEP))
        if wide is not None and MASTER not in blank and wide.shape == parameter.shape:
            keep_piece(parameter.data, wide)
        had = {MASTER: blank.get(MASTER) if wide is None else wide, STEP: torch.tensor(float(step)) if count is None else count}
        saved |= {f"{key}.{name}": value for key, value in had.items() if key in blank and value is not None}
        for key, like in blank.items():
            value = saved.get(f"{key}.{name}")
            if value is not None and value.is_floating_point():
                saved[f"{key}.{name}"] = value.to(like.dtype)
    return saved


def _owners(model: nn.Module, optimizer: Optimizers) -> dict[str, _Owner]:
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
    return value if is_sharded(value) else place(value, like)

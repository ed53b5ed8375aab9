"""AdamW, fused, with weight decay on matrices only; its state as named tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from apr_train.errors import RunError
from apr_train.model.sharding import place
from apr_train.run.folder import OPTIMIZER
from apr_train.run.settings import OptimizerSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, settings: OptimizerSettings, *, lr: float) -> torch.optim.AdamW:
    """Two groups: matrices (embeddings included) with decay, vectors (norms and biases) without.

    The state starts empty, whatever checkpoint the weights came from (FALSIFY-APR-PRETRAIN-INIT-009).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=settings.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state as `exp_avg.{parameter}`, `exp_avg_sq.{parameter}` and `step.{parameter}`; empty before the first step.

    A parameter without any gradient so far has the zeros that AdamW starts it with, so that the file is complete.
    """
    if not optimizer.state:
        return {}
    return {
        f"{key}.{name}": value
        for name, parameter in _trained(model)
        for key, value in (optimizer.state.get(parameter) or _untouched(parameter)).items()
    }


def _untouched(parameter: nn.Parameter) -> dict[str, Tensor]:
    return {"step": torch.zeros((), device=parameter.device)} | {key: torch.zeros_like(parameter) for key in MOMENTS}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], *, step: int) -> None:
    """Put a saved state back, bit for bit.

    Args:
        model: its trained parameters are those of the optimizer.
        optimizer: gets the state.
        tensors: as `optimizer_tensors` gives them.
        step: steps that were done; before the first one there is no state.

    Raises:
        RunError: if a tensor is absent, belongs to no parameter, or has another shape or dtype than it.
    """
    trained = dict(_trained(model)) if step else {}
    strange = sorted(set(tensors) ^ {f"{key}.{name}" for name in trained for key in (*MOMENTS, "step")})
    if strange:
        found = f"{strange[0]}, which has no parameter" if strange[0] in tensors else f"no {strange[0]}"
        raise RunError("the optimizer state is of another model", where=OPTIMIZER, found=found)
    for name, parameter in trained.items():
        state = {"step": _fitting(tensors, f"step.{name}", torch.Size(()), torch.float32)}
        moments = {key: _fitting(tensors, f"{key}.{name}", parameter.shape, parameter.dtype) for key in MOMENTS}
        placed = {key: place(value, parameter) for key, value in moments.items()}
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()} | placed


def _fitting(tensors: Mapping[str, Tensor], name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    value = tensors[name]
    if value.shape != shape or value.dtype != dtype:
        expected, found = f"{dtype} {list(shape)}", f"{value.dtype} {list(value.shape)}"
        raise RunError(f"{name} does not fit", where=OPTIMIZER, expected=expected, found=found)
    return value

"""AdamW, fused, with weight decay on matrices only; its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from apr_train.errors import RunError
from apr_train.train.settings import OptimizerSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
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
    return torch.optim.AdamW(groups, lr=settings.lr or 0.0, betas=betas, eps=settings.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state as `exp_avg.{parameter}`, `exp_avg_sq.{parameter}` and `step.{parameter}`; empty before the first step."""
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            tensors[f"{key}.{name}"] = value
    return tensors


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put a saved state back, bit for bit.

    Raises:
        RunError: if a tensor belongs to no parameter, or has another shape or dtype than it.
    """
    expected = {f"{key}.{name}" for name, _ in model.named_parameters() for key in (*MOMENTS, "step")}
    extra = sorted(set(tensors) - expected)
    if extra:
        raise RunError("the optimizer state is of another model", where="optimizer.safetensors", found=extra[0])
    for name, parameter in model.named_parameters():
        if f"step.{name}" not in tensors:
            continue
        state = {"step": tensors[f"step.{name}"].to(parameter.device)}
        for key in MOMENTS:
            value = tensors.get(f"{key}.{name}")
            if value is None or value.shape != parameter.shape:
                found = None if value is None else list(value.shape)
                raise RunError(f"{key}.{name} does not fit", where="optimizer.safetensors", found=found)
            state[key] = value.to(parameter.device)
        optimizer.state[parameter] = state

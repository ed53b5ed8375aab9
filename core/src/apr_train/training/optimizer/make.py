"""A run's optimizer: AdamW, or Muon for the matrices of the blocks and AdamW for the rest, in groups that have a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from attrs import field, frozen
from torch import Tensor, nn

from apr_train.model.protocol import LanguageModel
from apr_train.model.sharding import is_sharded
from apr_train.preflight.optimizer_rules import ParameterGroups
from apr_train.run.settings import OptimizerSettings
from apr_train.training.optimizer.bfloat16 import Float32Updates
from apr_train.training.optimizer.whole_matrices import WholeMatrices

MOMENTS: Mapping[str, tuple[str, ...]] = {"AdamW": ("exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}
"""Optimizer → the tensors of its state that have a parameter's shape."""


@frozen
class Optimizers:
    """The optimizers of a run, each of its own parameters, as one."""

    parts: tuple[torch.optim.Optimizer, ...]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all parts; each has its `name`, and its peak rate by the run's as `lr_scale`."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self.parts:
            part.step()

    def set_learning_rate(self, rate: float) -> None:
        """Give every group the run's rate, times its own peak by the run's."""
        for group in self.param_groups:
            group["lr"] = rate * group["lr_scale"]


@frozen
class _Place:
    """Where a parameter belongs: which optimizer has it, and in which group."""

    kind: str
    """`AdamW` or `Muon`."""
    name: str
    lr: float
    weight_decay: float
    dtype: torch.dtype = field(repr=False)
    sharded: bool = field(repr=False)
    """Torch's optimizers take pieces and whole parameters in groups of their own only."""


def make_optimizer(
    model: nn.Module,
    settings: OptimizerSettings,
    *,
    lr: float,
    groups: ParameterGroups | None = None,
    seed: int = 0,
) -> Optimizers:
    """The optimizer of all parameters that are trained; matrices have decay, vectors (norms and biases) have none.

    The state starts empty, whatever checkpoint the weights came from (FALSIFY-APR-PRETRAIN-INIT-009).

    Args:
        model: what is frozen in it is left out.
        settings: which optimizer, with what.
        lr: the run's peak rate.
        groups: what is otherwise for some parameters; None: for none.
        seed: of the random bits of stochastic rounding.
    """
    places = _places(model, settings, lr, groups or ParameterGroups())
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    parts: dict[tuple[str, torch.dtype], list[dict[str, Any]]] = {}
    for place, members in places.items():
        parts.setdefault((place.kind, place.dtype), []).append(_group(place, members, lr))
    return Optimizers(tuple(_part(kind, dtype, mine, settings, names, seed) for (kind, dtype), mine in parts.items()))


def _part(
    kind: str,
    dtype: torch.dtype,
    groups: Sequence[dict[str, Any]],
    settings: OptimizerSettings,
    names: Mapping[Tensor, str],
    seed: int,
) -> torch.optim.Optimizer:
    """One of torch's optimizers; of bfloat16 weights, with updates in float32 unless they are to be rounded to nearest."""
    make = _adamw(settings) if kind == "AdamW" else _muon(settings)
    if dtype != torch.bfloat16 or settings.bf16_update == "nearest":
        sharded = any(is_sharded(parameter) for group in groups for parameter in group["params"])
        return WholeMatrices(groups, make, moments=MOMENTS[kind]) if sharded and kind == "Muon" else make(groups)
    return Float32Updates(
        groups,
        make,
        moments=MOMENTS[kind],
        elementwise=kind == "AdamW",
        master=settings.bf16_update == "master",
        names=names,
        seed=seed,
    )


def _group(place: _Place, members: Sequence[nn.Parameter], lr: float) -> dict[str, Any]:
    own = {"name": place.name, "lr": place.lr, "lr_scale": place.lr / lr, "weight_decay": place.weight_decay}
    return {"params": members, **own}


def _adamw(settings: OptimizerSettings) -> Callable[[Any], torch.optim.Optimizer]:
    betas = (settings.beta1, settings.beta2)
    return partial(torch.optim.AdamW, betas=betas, eps=settings.eps, fused=True)


def _muon(settings: OptimizerSettings) -> Callable[[Any], torch.optim.Optimizer]:
    adjustment = settings.muon_adjust_lr.replace("-", "_")
    return partial(torch.optim.Muon, momentum=settings.muon_momentum, adjust_lr_fn=adjustment)


def _places(
    model: nn.Module, settings: OptimizerSettings, lr: float, groups: ParameterGroups
) -> dict[_Place, list[nn.Parameter]]:
    """Every trained parameter where it belongs, matrices first, else in the model's order."""
    hidden = _hidden_matrices(model, groups.routers) if settings.optimizer == "muon" else set()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    places: dict[_Place, list[nn.Parameter]] = {}
    for name, parameter in sorted(trained, key=lambda item: item[1].ndim < 2):
        kind = "Muon" if name in hidden else "AdamW"
        places.setdefault(_place(kind, name, parameter, settings, lr, groups), []).append(parameter)
    return places


def _place(
    kind: str, name: str, parameter: nn.Parameter, settings: OptimizerSettings, lr: float, groups: ParameterGroups
) -> _Place:
    own, is_matrix = groups.of.get(name), parameter.ndim >= 2
    usual = settings.muon_lr if kind == "Muon" and settings.muon_lr is not None else lr
    decay = settings.weight_decay if is_matrix else 0.0
    return _Place(
        kind=kind,
        name=str(own.pattern) if own is not None else "matrices" if is_matrix else "vectors",
        lr=usual if own is None or own.lr is None else own.lr,
        weight_decay=decay if own is None or own.weight_decay is None else own.weight_decay,
        dtype=parameter.dtype,
        sharded=is_sharded(parameter),
    )


def _hidden_matrices(model: nn.Module, routers: frozenset[str]) -> set[str]:
    """Names of what Muon is for: parameters of two axes in the blocks.

    Embeddings, head and vectors are AdamW's (https://kellerjordan.github.io/posts/muon/). So is a router, whose outputs are
    logits as a head's are, and a stack of experts, which has three axes: torch's Muon takes two.
    """
    blocks = {id(parameter) for parameter in cast(LanguageModel, model).blocks.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in blocks and parameter.ndim == 2 and not any(name.startswith(f"{module}.") for module in routers)
    }


def kind_of(part: torch.optim.Optimizer) -> str:
    """`AdamW` or `Muon`."""
    return type(part.inner if isinstance(part, Float32Updates | WholeMatrices) else part).__name__

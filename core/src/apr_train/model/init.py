"""Start values of parameters: drawn from one generator, module by module, by rules that never guess."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from apr_train.errors import ConfigError
from apr_train.model.sharding import local, piece_of
from apr_train.suggest import did_you_mean

_DRAWN = (nn.Linear, nn.Embedding)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@runtime_checkable
class HasStartValues(Protocol):
    """A module that says what its own parameters start with. A bare `nn.Parameter` needs one: no shape tells a norm's
    weight from a matrix."""

    def initial_value(self, leaf: str) -> float | None:
        """The constant that the parameter named `leaf` is filled with; None: draw it from N(0, initializer_range²)."""
        ...


@torch.no_grad()
def initialize(model: nn.Module, std: float, generator: torch.Generator, names: Collection[str] | None = None) -> None:
    """Fill the parameters of `model`, or the named ones only, in the order in which the model lists them.

    A module with `initial_value` decides for itself; else biases are zero, weights of torch's norms one, and matrices of
    linear layers and embeddings drawn from N(0, std²), the row of an embedding's padding zero. Values are drawn on the
    generator's device (use a CPU one) in float32, so they do not depend on the model's device, nor on how it is sharded.

    Raises:
        ConfigError: for a name that the model does not have, or for parameters that no rule knows; nothing is filled then.
    """
    known = dict(model.named_parameters())
    for name in names or ():
        if name not in known:
            raise ConfigError("no such parameter", where=name, hint=did_you_mean(name, known))
    wanted = {name: parameter for name, parameter in known.items() if names is None or name in names}
    for name in wanted:
        _check(name, *_owner(model, name))
    for name, parameter in wanted.items():
        _fill(*_owner(model, name), parameter, std, generator)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that a parameter belongs to, and the parameter's name in it."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _check(name: str, owner: nn.Module, leaf: str) -> None:
    if isinstance(owner, (HasStartValues, *_DRAWN, *_NORMS)) or leaf == "bias":
        return
    kind = type(owner).__name__
    raise ConfigError(
        "no rule says what this parameter starts with",
        where=name,
        expected="a parameter of nn.Linear, nn.Embedding or one of torch's norms, or a module with initial_value",
        found=f"{kind}.{leaf}",
        hint=f"Give {kind} a method initial_value(self, leaf): the number that it is filled with (1.0 for a norm's weight, "
        "0.0 if it is added to one), or None to have it drawn from N(0, initializer_range).",
    )


def _fill(owner: nn.Module, leaf: str, parameter: Tensor, std: float, generator: torch.Generator) -> None:
    value = _constant(owner, leaf)
    if value is not None:
        local(parameter).fill_(value)
        return
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
    drawn.normal_(0.0, std, generator=generator)
    if isinstance(owner, nn.Embedding) and owner.padding_idx is not None:
        drawn[owner.padding_idx].zero_()
    local(parameter).copy_(piece_of(drawn, parameter))


def _constant(owner: nn.Module, leaf: str) -> float | None:
    """What a parameter is filled with, or None where it is drawn."""
    if isinstance(owner, HasStartValues):
        return owner.initial_value(leaf)
    if leaf == "bias":
        return 0.0
    return 1.0 if isinstance(owner, _NORMS) else None

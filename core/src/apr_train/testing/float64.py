"""Models computed in float64 throughout, whatever they cast to float32 on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from apr_train.testing.compare import fail_on

_MARK = "_lifted_to_float64"


class _LiftedCasts(TorchFunctionMode):
    """Every call that asks for float32 gets float64: `.float()`, `.to(torch.float32)`, `softmax(dtype=torch.float32)`,
    `torch.arange(…, dtype=torch.float32)`; the grouped product, which torch has not in float64, goes group by group."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        elif func is getattr(torch, "_grouped_mm", None):
            func = _grouped_product
        return func(*map(_lifted, args), **{name: _lifted(value) for name, value in (kwargs or {}).items()})


def _grouped_product(rows: Tensor, matrices: Tensor, offs: Tensor, **unused: Any) -> Tensor:
    """`[rows, in]`, those up to `offs[0]` times the first of `[groups, in, out]`, and so on: `[rows, out]`."""
    pieces = torch.tensor_split(rows, offs[:-1].tolist())
    return torch.cat([piece @ matrix for piece, matrix in zip(pieces, matrices.unbind(0), strict=True)])


@contextmanager
def everything_in_float64() -> Iterator[None]:
    """Lift casts to float32, and make tensors without a dtype in float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _LiftedCasts():
            yield
    finally:
        torch.set_default_dtype(default)


def _lifted(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def compute_in_float64(reference: nn.Module) -> nn.Module:
    """Copy a transformers model so that all of it is computed in float64, casts to float32 included.

    transformers casts norms, rotary tables, softmax and routers to float32 whatever the weights are, which stops every
    comparison near 1e-7. Each such cast is lifted when it is called, in any class, while the model is made (tables that it
    keeps are made then) and whenever it is called afterwards.

    Args:
        reference: a model without tables in float32 (buffers that no state dict has), or one that its class makes of
            `reference.config` alone; it stays as it is.

    Returns:
        Another model with the same weights and in the same mode, in float64.

    Raises:
        ConformanceError: for a model with tables that has no config, or whose class makes other parameters of it.
    """
    lifted = _made_again(reference) if _has_tables(reference) else copy.deepcopy(reference).double()
    own = lifted.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with everything_in_float64():
            return own(*args, **kwargs)

    lifted.forward = forward
    lifted.__dict__[_MARK] = True
    return lifted


def _has_tables(model: nn.Module) -> bool:
    """Whether it keeps numbers that its state dict does not have: rounded to float32, they have to be made again."""
    kept = set(model.state_dict())
    return any(name not in kept and buffer.is_floating_point() for name, buffer in model.named_buffers())


def _made_again(reference: nn.Module) -> nn.Module:
    """A model of the same class, config and weights, in float64, its tables made in float64, too."""
    config = getattr(reference, "config", None)
    fail_on([] if config is not None else ["no config to make it again from"], where=type(reference).__name__)
    make: Callable[[Any], nn.Module] = type(reference)
    with everything_in_float64():
        made = make(copy.deepcopy(config)).double().train(reference.training)
    state = {name: tensor.double() for name, tensor in reference.state_dict().items()}
    try:
        made.load_state_dict(state)
    except RuntimeError as error:
        fail_on([f"made again from its config, it has other parameters: {error}"], where=type(reference).__name__)
    return made


def is_lifted(model: nn.Module) -> bool:
    """Whether a model comes from `compute_in_float64`."""
    return _MARK in model.__dict__

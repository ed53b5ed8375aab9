"""Weights averaged over the steps (an exponential moving average), beside the trained ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from apr_train.errors import FormatError, RunError
from apr_train.model.sharding import is_sharded, keep_piece, local
from apr_train.run.folder import AVERAGING

TRAINED, AVERAGED = "trained", "averaged"


class AveragedWeights:
    """The average of each trained parameter, in float32: a bfloat16 one would round its small moves away.

    It begins as the weights that the run starts from; after every step, average ← decay · average + (1 − decay) · weights, by
    torch's own function. Of a sharded parameter each process averages its piece.

    Args:
        model: its parameters that want gradients are averaged.
        decay: above 0 and below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._averages = {name: parameter.detach().float().clone() for name, parameter in _trained(model).items()}
        self._aside: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights after a step in."""
        current = [local(parameter.detach()).float() for parameter in _trained(model).values()]
        self._update([local(average) for average in self._averages.values()], current, 0)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averages, in its own types; behind it, the trained weights.

        These are not copied, unless they are sharded: torch gathers a sharded parameter from the memory that it had at first.
        """
        parameters = _trained(model)
        self._aside = {name: _set_aside(parameter) for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                _put(parameter, self._averages[name].to(parameter.dtype))
            yield
        finally:
            for name, parameter in parameters.items():
                _put(parameter, self._aside[name])
            self._aside = {}

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """What a resume needs: `trained.{parameter}` in the weights' types, and `averaged.{parameter}` in float32."""
        trained = {name: self._aside.get(name, parameter.detach()) for name, parameter in _trained(model).items()}
        return {f"{TRAINED}.{name}": value for name, value in trained.items()} | {
            f"{AVERAGED}.{name}": average for name, average in self._averages.items()
        }

    def restore(self, model: nn.Module, checkpoint: Path, *, convert: bool = False) -> None:
        """Put weights and averages back, bit for bit.

        Args:
            model: gets the trained weights, in place of the averaged ones of the checkpoint's model.
            checkpoint: the folder.
            convert: whether weights of another floating type become of the model's.

        Raises:
            FormatError: when the file is damaged.
            RunError: when it is of another model.
        """
        path = checkpoint / AVERAGING
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise FormatError("cannot read the averaged weights", path=path, found=str(error)) from error
        parameters = _trained(model)
        expected = {f"{kind}.{name}" for kind in (TRAINED, AVERAGED) for name in parameters}
        if strange := sorted(expected ^ tensors.keys()):
            found = f"{strange[0]}, which has no parameter" if strange[0] in tensors else f"no {strange[0]}"
            raise RunError("the averaged weights are of another model", where=path, found=found)
        for name, parameter in parameters.items():
            _require_like(tensors, f"{AVERAGED}.{name}", parameter, torch.float32, path)
            _require_like(tensors, f"{TRAINED}.{name}", parameter, None if convert else parameter.dtype, path)
        for name, parameter in parameters.items():
            keep_piece(parameter.data, tensors[f"{TRAINED}.{name}"])
            keep_piece(self._averages[name], tensors[f"{AVERAGED}.{name}"])


def _set_aside(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().clone() if is_sharded(parameter) else parameter.data


@torch.no_grad()
def _put(parameter: nn.Parameter, values: Tensor) -> None:
    if is_sharded(parameter):
        local(parameter).copy_(local(values))
    else:
        parameter.data = values


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _require_like(
    tensors: Mapping[str, Tensor], name: str, parameter: nn.Parameter, dtype: torch.dtype | None, path: Path
) -> None:
    value = tensors[name]
    if value.shape != parameter.shape or (dtype is not None and value.dtype != dtype):
        expected = f"{dtype or 'a type'} {list(parameter.shape)}"
        raise RunError(f"{name} does not fit", where=path, expected=expected, found=f"{value.dtype} {list(value.shape)}")


def start_remark(decay: float, steps: int) -> str | None:
    """What to say where the average would be, to a tenth or more, still the weights that the run starts from."""
    share = decay**steps
    if steps == 0 or share < 0.1:
        return None
    told = f"after {steps:,} steps the average with --ema {decay:g} is still {share:.0%} the weights that the run starts from"
    return f"{told}; --ema {10 ** (-1 / steps):.4f} would leave a tenth"

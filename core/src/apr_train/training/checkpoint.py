"""Checkpoints that a run can go on from, bit for bit: model.apr (or an adapter), optimizer.safetensors, state.json.

Written into a folder of another name, synced, then renamed as a whole: what is called `step-000500` is complete.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from apr_train.atomic import replace_folder
from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.safetensors import read_index, write_safetensors
from apr_train.errors import FormatError
from apr_train.model.sharding import local
from apr_train.model.tensors import DTYPE_NAMES, to_view
from apr_train.run.folder import AVERAGING, MODEL, OPTIMIZER, STATE, prune, step_name
from apr_train.training.optimizer.make import Optimizers
from apr_train.training.optimizer.state import restore_optimizer
from apr_train.training.processes import Whole

VERSION = 1


@frozen
class Weights:
    """A model's parameters for one who writes them while the model may be in use.

    They are found by name before: while a block computes, torch's FSDP2 has other parameters in their place.
    """

    model: nn.Module
    """For what is no tensor."""
    parameters: Mapping[str, Tensor]
    """By every name that they have; for types and shapes."""
    make_whole: Whole

    @classmethod
    def of(cls, model: nn.Module, whole: Whole = lambda tensor: tensor) -> Self:
        """All parameters of a model."""
        return cls(model, dict(model.named_parameters(remove_duplicate=False)), whole)

    def whole(self, name: str) -> Tensor:
        """All of a parameter."""
        return self.make_whole(self.parameters[name]).detach()


class ModelWriter(Protocol):
    """Writes the model with everything that belongs to it into one file."""

    def __call__(self, path: Path, weights: Weights, *, step: int) -> None:
        """Write `path`; the same model at the same step gives the same bytes."""
        ...


def rng_state(device: torch.device) -> dict[str, str]:
    """torch's random generators as text: the only global ones that the loop draws from (dropout)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return {name: base64.b64encode(value.numpy().tobytes()).decode("ascii") for name, value in state.items()}


def restore_rng(state: Mapping[str, str], device: torch.device) -> None:
    """Put the generators back."""
    decoded = {name: torch.frombuffer(bytearray(base64.b64decode(value)), dtype=torch.uint8) for name, value in state.items()}
    torch.set_rng_state(decoded["cpu"])
    if device.type == "cuda" and "cuda" in decoded:
        torch.cuda.set_rng_state(decoded["cuda"], device)


def save_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    *,
    weights: Weights,
    optimizer_state: Mapping[str, Tensor],
    write_model: ModelWriter,
    keep: int,
    spare: Collection[int] = (),
    averaging: Mapping[str, Tensor] | None = None,
    model_name: str = MODEL,
) -> Path:
    """Write `step-…` for `state["step"]`, then remove the oldest; a checkpoint that is already there stays as it is.

    Several processes write what one would.

    Args:
        folder: of the run.
        state: becomes state.json.
        weights: what is written: the averaged ones, if there are any. They make the other tensors whole, too.
        optimizer_state: as `optimizer_tensors` gives it.
        write_model: writes the model.
        keep: the newest so many checkpoints stay; 0 for all.
        spare: steps whose checkpoints stay, too.
        averaging: as `AveragedWeights.tensors` gives it; empty where nothing averages the weights.
        model_name: of the file that `write_model` writes.

    Raises:
        OutputError: when it cannot be written; nothing is removed then.
    """
    target = folder / step_name(state["step"])
    if not target.exists():
        with replace_folder(target, like=folder) as beside:
            write_model(beside / model_name, weights, step=state["step"])
            if averaging:
                _write_tensors(beside / AVERAGING, averaging, weights.make_whole)
            _write_tensors(beside / OPTIMIZER, optimizer_state, weights.make_whole)
            (beside / STATE).write_text(json.dumps({"version": VERSION, **state}, indent=1) + "\n", encoding="utf-8")
    prune(folder, keep, spare)
    return target


def broken_weights(model: nn.Module) -> list[str]:
    """The names of the trained parameters in which something that is here is NaN or infinite."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for name, parameter in trained if not bool(torch.isfinite(local(parameter)).all())]


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], whole: Whole) -> None:
    infos = [TensorInfo(name, DTYPE_NAMES[item.dtype], tuple(item.shape), item.nbytes) for name, item in tensors.items()]
    write_safetensors(path, infos, lambda name: [to_view(whole(tensors[name])).data])


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json.

    Raises:
        FormatError: when it is not what `save_checkpoint` writes.
    """
    path = checkpoint / STATE
    state = parse_json(path)
    if state.get("version") != VERSION:
        found = state.get("version")
        raise FormatError("another version of the state", path=path, field="version", expected=VERSION, found=found)
    for name, kind in {"step": int, "tokens": int, "data": dict, "rng": dict}.items():
        value = state.get(name)
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 1 << 63):
            raise FormatError("not a checkpoint's state", path=path, field=name, expected=kind.__name__, found=f"{value!r:.80}")
    _check_rng(state["rng"], path)
    return state


def _check_rng(state: dict[str, Any], path: Path) -> None:
    """Each generator's state is one that torch takes: the CPU's is tried, another device's has the form of one."""
    if "cpu" not in state:
        raise FormatError("no state of the random generator", path=path, field="rng.cpu", found=f"{list(state)!r:.80}")
    for name, value in state.items():
        try:
            decoded = base64.b64decode(value, validate=True)
            if name == "cpu":
                torch.Generator().set_state(torch.frombuffer(bytearray(decoded), dtype=torch.uint8))
        except (TypeError, ValueError, RuntimeError) as error:
            expected = f"{torch.get_rng_state().numel()} bytes in base64, as torch wrote them"
            found = f"{value!r:.40}"
            raise FormatError(
                "not a state of the random generator", path=path, field=f"rng.{name}", expected=expected, found=found
            ) from error


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: Optimizers, *, step: int, convert: bool = False) -> None:
    """Read the optimizer's state at `step` back; `convert`: into the present types of the weights.

    Raises:
        FormatError: when the file is damaged.
        RunError: when it is of another model.
    """
    path = checkpoint / OPTIMIZER
    read_index(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FormatError("cannot read the optimizer's state", path=path, found=str(error)) from error
    restore_optimizer(model, optimizer, tensors, step=step, convert=convert)

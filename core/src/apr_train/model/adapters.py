"""Adapters as PEFT's layers around a model's linear ones: put on, read out, set; the only module that imports peft."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apr_train import rules
from apr_train.checkpoint.adapter_files import Adapter
from apr_train.checkpoint.dtypes import Array
from apr_train.errors import ConfigError, FormatError
from apr_train.family.adapter_sites import ADAPTER_NAME, SIDES, Site
from apr_train.model.sharding import local, piece_of


def peft_library() -> ModuleType:
    """Import peft, which takes seconds and brings transformers: only where adapters are trained, or merged by its own code.

    Raises:
        ConfigError: ADAPTER-001 when it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        hint = "Install it: pip install 'apr-train[lora]'"
        raise ConfigError("adapters need peft", rule=rules.ADAPTER_001, where="peft", found=error, hint=hint) from error
    return peft


def attach(model: nn.Module, sites: Sequence[Site], *, rank: int, alpha: float, dropout: float) -> None:
    """Put a LoRA on the linear layer of each site, in float32, and freeze everything else of the model.

    B is zero, so that the model computes what it did; A is drawn from torch's generator.

    Raises:
        ConfigError: ADAPTER-001 when peft is not installed, or a module is no linear layer.
    """
    peft = peft_library()
    _require_linear(model, sites)
    whole = int(alpha) if alpha == int(alpha) else alpha  # peft writes what it is given: 16, as everybody does
    config = peft.LoraConfig(
        r=rank, lora_alpha=whole, lora_dropout=dropout, target_modules=[site.module for site in sites], bias="none"
    )
    peft.inject_adapter_in_model(config, model, ADAPTER_NAME)
    for site in sites:
        layer: Any = model.get_submodule(site.module)
        for side in SIDES:
            getattr(layer, side).float()  # peft gives them the base's type, in which small updates would be lost


def _require_linear(model: nn.Module, sites: Sequence[Site]) -> None:
    for site in sites:
        layer = model.get_submodule(site.module)
        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                "no linear layer, which an adapter could be put on",
                rule=rules.ADAPTER_001,
                where="--lora-target",
                field=site.module,
                expected="torch.nn.Linear",
                found=type(layer).__name__,
                hint="Name the targets that are.",
            )


def adapter_tensors(parameter: Callable[[str], Tensor], sites: Iterable[Site]) -> dict[str, Tensor]:
    """The adapters' matrices, on the CPU, by Hugging Face's names as peft saves them, without `base_model.model.`.

    `parameter` gives one of the model's by its name.
    """
    found = {}
    for site in sites:
        a, b = (parameter(f"{site.module}.{side}.{ADAPTER_NAME}.weight").detach().cpu() for side in SIDES)
        found[f"{site.hf_module}.lora_A.weight"] = a
        found[f"{site.hf_module}.lora_B.weight"] = site.rows_to_file(b).contiguous()
    return found


@torch.no_grad()
def set_adapter(model: nn.Module, sites: Iterable[Site], adapter: Adapter) -> None:
    """Give a model's adapters the values of a file that `adapter_tensors` was written to.

    Raises:
        FormatError: ADAPTER-002 when the file lacks one, has another shape of it, or more than these.
    """
    left = set(adapter.tensors)
    for site in sites:
        layer: Any = model.get_submodule(site.module)
        for side, change in zip(SIDES, (_same, site.rows_to_model), strict=True):
            name, weight = f"{site.hf_module}.{side}.weight", getattr(layer, side)[ADAPTER_NAME].weight
            left.discard(name)
            if name not in adapter.tensors or adapter.tensors[name].shape != tuple(weight.shape):
                found = adapter.tensors[name].shape if name in adapter.tensors else "nothing"
                raise _unfit(adapter, name, tuple(weight.shape), found)
            local(weight).copy_(piece_of(torch.from_numpy(np.array(change(adapter.read(name)))), weight))
    if left:
        raise _unfit(adapter, min(left), "no such tensor", adapter.tensors[min(left)].shape)


def _same(matrix: Any) -> Any:
    return matrix


def _unfit(adapter: Adapter, name: str, expected: object, found: object) -> FormatError:
    problem = "not the adapter of this run"
    return FormatError(problem, rule=rules.ADAPTER_002, path=adapter.folder, field=name, expected=expected, found=found)


def adapter_config(model: nn.Module) -> dict[str, Any]:
    """What peft would write into adapter_config.json, for the names of the model here: JSON-able."""
    config: Any = model.peft_config
    written = dict(config[ADAPTER_NAME].to_dict())
    written["peft_version"] = peft_library().__version__
    written["inference_mode"] = True  # as save_pretrained writes it: whoever loads it does not train it unless told
    return {key: sorted(value) if isinstance(value, set) else value for key, value in written.items()}


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many are not."""
    counts = [0, 0]
    for parameter in model.parameters():
        counts[not parameter.requires_grad] += parameter.numel()
    return counts[0], counts[1]


@torch.no_grad()
def merged_by_peft(
    config: Mapping[str, Any],
    module: str,
    weight: Array,
    tensors: Mapping[str, Array],
    *,
    where: str,
) -> Array:
    """A linear layer's weight with an adapter of any kind of peft's merged into it, by peft's own code.

    Args:
        config: adapter_config.json.
        module: the layer's name in transformers' model.
        weight: `[out, in]`, float32.
        tensors: the adapter's tensors of this layer, by their full names.
        where: the adapter, for messages.

    Raises:
        ConfigError: ADAPTER-001 when peft is not installed.
        FormatError: ADAPTER-002 when peft cannot put that adapter on one layer, or merge it.
    """
    peft = peft_library()
    shell = _shell(module, weight)
    try:
        peft.inject_adapter_in_model(peft.PeftConfig.from_peft_type(**_for_one_layer(config, module)), shell, ADAPTER_NAME)
        state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
        unused = peft.set_peft_model_state_dict(shell, state, ADAPTER_NAME).unexpected_keys
        layer: Any = shell.get_submodule(module)
        layer.merge()
        merged: Array = layer.get_base_layer().weight.numpy()
    except (
        AttributeError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # whatever peft raises
        raise _not_by_peft(config, module, where, str(error)) from error
    if unused:
        raise _not_by_peft(config, module, where, f"no place for {unused[0]}")
    return merged


def _for_one_layer(config: Mapping[str, Any], module: str) -> dict[str, Any]:
    """What of an adapter's config is set, for a model that has this one layer."""
    found = {**config, "target_modules": [module], "inference_mode": True, "layers_to_transform": None, "exclude_modules": None}
    if isinstance(inner := config.get("feedforward_modules"), list):  # of IA3: layers whose input is scaled, not the output
        found["feedforward_modules"] = [module] if any(f".{module}".endswith(f".{name}") for name in inner) else []
    return {key: value for key, value in found.items() if value is not None}


def _shell(module: str, weight: Array) -> nn.Module:
    """A model that has this one linear layer, under its name."""
    root = nn.Module()
    *path, leaf = module.split(".")
    place = root
    for name in path:
        place.add_module(name, nn.Module())
        place = place.get_submodule(name)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(torch.from_numpy(np.array(weight)), requires_grad=False)
    place.add_module(leaf, linear)
    return root


def _not_by_peft(config: Mapping[str, Any], module: str, where: str, found: str) -> FormatError:
    kind = str(config.get("peft_type"))
    return FormatError(
        f"peft does not merge this {kind} adapter layer by layer",
        rule=rules.ADAPTER_002,
        path=where,
        field=module,
        found=found.partition("\n")[0],
        hint="Merge it as a whole: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().save_pretrained(NEW_FOLDER).",
    )

"""A run's optimizer in words, for the lines of its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from apr_train.run.settings import OptimizerSettings, Settings
from apr_train.training.optimizer.bfloat16 import Float32Updates
from apr_train.training.optimizer.make import Optimizers, kind_of

_UPDATES = {"stochastic": "stochastic rounding", "master": "a float32 master copy"}


def optimizer_lines(model: nn.Module, optimizer: Optimizers, settings: Settings) -> dict[str, str]:
    """Label → text: the optimizer and its schedule, each group of parameters, and what is frozen, as far as anything is."""
    chosen = settings.optimizer
    kinds = " and ".join(dict.fromkeys(kind_of(part) for part in optimizer.parts))
    wide = any(isinstance(part, Float32Updates) for part in optimizer.parts)
    updates = f", {_UPDATES[chosen.bf16_update]} of bfloat16 weights" if wide else ""
    lines = {"optimizer": f"{kinds}, {chosen.schedule} from {chosen.lr:g}, {settings.run.steps} steps{updates}"}
    groups = [(kind_of(part), group) for part in optimizer.parts for group in part.param_groups]
    lines |= {f"group {number}": _group(kind, group, chosen) for number, (kind, group) in enumerate(groups, 1)}
    still = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return lines | ({"frozen": _counted(still)} if still and settings.lora.lora_rank is None else {})


def _group(kind: str, group: Mapping[str, Any], settings: OptimizerSettings) -> str:
    adjusted = f" ({settings.muon_adjust_lr})" if kind == "Muon" else ""
    rate, decay = f"lr {group['lr']:g}{adjusted}", f"decay {group['weight_decay']:g}"
    return f"{kind}, {group['name']}: {_counted(group['params'])}, {rate}, {decay}"


def _counted(parameters: Sequence[nn.Parameter]) -> str:
    tensors = "1 tensor" if len(parameters) == 1 else f"{len(parameters)} tensors"
    return f"{tensors} of {sum(parameter.numel() for parameter in parameters):,} parameters"

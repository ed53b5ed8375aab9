"""What a run does where the user said nothing: decided once, then written into the run's config.toml."""

from __future__ import annotations

from typing import TypeVar

import attrs
import torch
from attrs import frozen

from apr_train.data.decided import decided_data, default_row
from apr_train.data.objectives import Objective
from apr_train.family.card import FamilyInfo
from apr_train.family.config import ModelConfig
from apr_train.model.device import PRECISIONS, Precision, default_precision
from apr_train.run.settings import LoraSettings, Settings
from apr_train.training.compilation import pays
from apr_train.training.schedule import Schedule

T = TypeVar("T")

LR_FINE_TUNING = 5e-5
"""What BERT, LLaMA-Factory and the transformers Trainer start from."""
LR_ADAPTERS = 2e-4
"""QLoRA's for models of up to 13 billion parameters (Dettmers et al. 2023, table 9); adapters want more than weights do."""
LR_FROM_SCRATCH = 6e-4
"""GPT-3's rate for its smallest model (Brown et al. 2020, table 2.1)."""
BATCH = {"cpu": 2, "cuda": 8}
MOST_WARM_UP = 100


@frozen(kw_only=True)
class Decided:
    """A run's settings with nothing left open."""

    settings: Settings
    """The same as config.toml has them."""
    device: torch.device
    precision: Precision
    sequence_length: int
    batch_size: int
    schedule: Schedule

    def uncompiled(self) -> Decided:
        """The same without compiled blocks."""
        return attrs.evolve(self, settings=attrs.evolve(self.settings, run=attrs.evolve(self.settings.run, compile=False)))


def decide(
    asked: Settings,
    *,
    family: FamilyInfo,
    config: ModelConfig,
    objective: Objective,
    device: torch.device,
    processes: int = 1,
) -> Decided:
    """Fill in what the user left open; what the user said stays."""
    warm, data, optimizer = asked.model.init is not None, asked.data, asked.optimizer
    precision = _or(asked.run.precision, default_precision(device))
    data = decided_data(data, objective, device=device.type, positions=config.usable_positions)
    batch = _or(data.batch_size, BATCH[device.type])
    rate = _or(optimizer.lr, LR_FINE_TUNING if warm else LR_FROM_SCRATCH)
    if asked.lora.lora_rank is not None:
        rate = _or(optimizer.lr, LR_ADAPTERS)
    warmup = _or(optimizer.warmup_steps, min(asked.run.steps // 10, MOST_WARM_UP))
    preset = asked.model.preset if warm else _or(asked.model.preset, family.default_preset)
    threads = _or(asked.run.threads, torch.get_num_threads())
    length = _or(data.sequence_length, default_row(device.type))
    workers = processes * (threads if device.type == "cpu" else 1)
    compiled = _or(asked.run.compile, pays(asked, config, device=device.type, length=length, batch_size=batch, workers=workers))
    run = attrs.evolve(asked.run, precision=precision, device=_or(asked.run.device, str(device)), threads=threads)
    settings = attrs.evolve(
        asked,
        model=attrs.evolve(asked.model, arch=_or(asked.model.arch, family.name), objective=objective.name, preset=preset),
        data=attrs.evolve(data, batch_size=batch),
        optimizer=attrs.evolve(optimizer, lr=rate, warmup_steps=warmup),
        lora=_decide_lora(asked.lora),
        run=attrs.evolve(run, compile=compiled),
    )
    return Decided(
        settings=settings,
        device=device,
        precision=PRECISIONS[precision],
        sequence_length=length,
        batch_size=batch,
        schedule=Schedule.of(settings.optimizer, steps=asked.run.steps, lr=rate, warmup_steps=warmup),
    )


def _decide_lora(lora: LoraSettings) -> LoraSettings:
    return lora if lora.lora_rank is None else attrs.evolve(lora, lora_alpha=_or(lora.lora_alpha, 2.0 * lora.lora_rank))


def _or(said: T | None, otherwise: T) -> T:
    return otherwise if said is None else said

"""What a run does where the user said nothing: decided once, then written into the run's config.toml."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch

from apr_train.family.card import FamilyInfo, ObjectiveName
from apr_train.family.config import ModelConfig
from apr_train.model.device import default_precision
from apr_train.run.settings import DataSettings, ModelSettings, OptimizerSettings, RunSettings, Settings

LR_FINE_TUNING = 5e-5
"""What BERT, LLaMA-Factory and the transformers Trainer start from."""
LR_FROM_SCRATCH = 6e-4
"""GPT-3's rate for its smallest model (Brown et al. 2020, table 2.1)."""
ROW = {"cpu": 512, "cuda": 1024}
BATCH = {"cpu": 2, "cuda": 8}
MOST_WARM_UP = 100
CHECKPOINT_SUFFIXES = frozenset({".apr", ".gguf", ".safetensors"})
Group = TypeVar("Group", ModelSettings, DataSettings, OptimizerSettings, RunSettings)


def resolve(
    settings: Settings, *, family: FamilyInfo, config: ModelConfig, objective: ObjectiveName, device: torch.device
) -> Settings:
    """Settings in which nothing that the run reads is None; what the user said stays."""
    warm = settings.model.init is not None
    return attrs.evolve(
        settings,
        model=_fill(settings.model, arch=family.name, objective=objective, preset=None if warm else family.default_preset),
        data=_fill(
            settings.data,
            sequence_length=min(ROW[device.type], config.usable_positions),
            batch_size=BATCH[device.type],
        ),
        optimizer=_fill(
            settings.optimizer,
            lr=LR_FINE_TUNING if warm else LR_FROM_SCRATCH,
            warmup_steps=min(settings.run.steps // 10, MOST_WARM_UP),
        ),
        run=_fill(settings.run, precision=default_precision(device), device=str(device), threads=torch.get_num_threads()),
    )


def run_stem(settings: Settings) -> str:
    """`family-x` for `--init x.apr`, `family-preset` from scratch: the name of a run without `--run`."""
    model = settings.model
    origin = _name_of(Path(model.init).resolve()) if model.init is not None else model.preset
    return f"{model.arch}-{origin}"


def _name_of(path: Path) -> str:
    """A checkpoint's name without its suffix; a folder has none: `Qwen2.5-Coder-0.5B` is a whole name."""
    return path.stem if path.suffix.lower() in CHECKPOINT_SUFFIXES and not path.is_dir() else path.name


def absolute_paths(settings: Settings) -> Settings:
    """The paths of inputs made absolute, so that the run's settings mean the same from any folder."""
    model = settings.model
    init, tokenizer = (None if path is None else str(Path(path).absolute()) for path in (model.init, model.tokenizer))
    return attrs.evolve(
        settings,
        model=attrs.evolve(model, init=init, tokenizer=tokenizer),
        data=attrs.evolve(settings.data, data=tuple(_absolute(item) for item in settings.data.data)),
    )


def _absolute(item: str) -> str:
    """A path, or a glob, in which nothing but what the user wrote is a pattern."""
    here = str(Path.cwd())
    there = os.path.exists(item)  # noqa: PTH110  # Path's raises for a name that is too long
    return str(Path(here if there else glob.escape(here), item))


def _fill(group: Group, **values: Any) -> Group:
    """Set the fields that are still None."""
    return attrs.evolve(group, **{name: value for name, value in values.items() if getattr(group, name) is None})

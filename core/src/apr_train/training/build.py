"""From a config to a model with weights, on its device, with its attention."""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import nn

from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.family.card import Objective
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.family.plugin import Family
from apr_train.model.acceleration import compile_blocks, make_deterministic, reuse_freed_memory
from apr_train.model.attention import Choice, Request, choose_backend, mask_kind
from apr_train.model.build import build_model, recompute_activations
from apr_train.model.device import Precision
from apr_train.model.load import LoadReport, load_weights
from apr_train.model.protocol import LanguageModel
from apr_train.preflight import Report
from apr_train.run.settings import Settings

_log = logging.getLogger(__name__)


def choose_attention(
    family: Family, config: ModelConfig, settings: Settings, objective: Objective, precision: Precision, device: torch.device
) -> Choice:
    """The family's first backend that can run here, or the one that `--attention` forces.

    Asks torch for deterministic algorithms first, where the run wants them: not every backend's operators are, and one
    that is tried out without would be refused at the first step.
    """
    if settings.run.deterministic:
        make_deterministic()
    request = Request.for_config(
        cast(DecoderConfig | EncoderConfig, config),
        device=device.type,
        dtype=precision.kernel_dtype,
        mask=mask_kind(objective, document_mask=settings.data.document_mask),
    )
    choice = choose_backend(family.attention_impl(config), request, settings.model.attention)
    _log.info("attention: %s", choice)
    return choice


def make_model(
    report: Report,
    choice: Choice,
    source: Checkpoint | None,
    settings: Settings,
    *,
    precision: Precision,
    device: torch.device,
) -> tuple[nn.Module, LoadReport | None]:
    """The model with the checkpoint's weights, or freshly initialised ones; what the file does not have is fresh.

    Fresh values depend on the seed alone, not on the device. Seeds torch's own generators (dropout) as well.
    """
    if device.type == "cpu":
        reuse_freed_memory()
    family, config = cast(Family, report.family), cast(ModelConfig, report.config)
    torch.manual_seed(settings.run.seed)
    generator = torch.Generator().manual_seed(settings.run.seed)
    model = build_model(family.build_model, config, choice.backend)
    if source is not None and report.plan is not None:
        loaded = load_weights(model, source, report.plan, dtype=precision.weights, device=device, generator=generator)
    else:
        loaded = None
        model.to(precision.weights).to_empty(device=device)
        cast(LanguageModel, model).initialize(generator)
    model.train()
    _speed(model, settings)
    return model, loaded


def _speed(model: nn.Module, settings: Settings) -> None:
    if settings.run.compile:
        compile_blocks(model)
    if settings.run.recompute:
        recompute_activations(cast(LanguageModel, model))

"""From a cleared run to a model with weights, on its device, with its attention."""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import nn

from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.grown import Grown
from apr_train.model.acceleration import compile_blocks, reuse_freed_memory
from apr_train.model.attention import AttentionBackend, Bidirectional, Causal, Choice, Mask, Request, choose_backend
from apr_train.model.build import build_model, recompute_activations
from apr_train.model.dropout import ByRow, draw_by_row
from apr_train.model.grown import check_old_logits
from apr_train.model.load import LoadReport, load_pieces, load_weights
from apr_train.model.protocol import LanguageModel
from apr_train.model.sharding import give_memory
from apr_train.model.tied_rows import add_rows_apart
from apr_train.preflight.adapter_rules import chosen_sites
from apr_train.preflight.optimizer_rules import parameter_groups
from apr_train.preflight.report import Cleared, ClearedFile
from apr_train.run.settings import LoraSettings, Settings
from apr_train.training.defaults import Decided
from apr_train.training.processes import Processes

_log = logging.getLogger(__name__)


def choose_attention(cleared: Cleared, decided: Decided) -> Choice:
    """The family's first backend that can run here, or the one that `--attention` forces.

    Raises:
        AttentionError: when none can, or the forced one cannot.
    """
    request = Request.for_config(
        cleared.config,
        device=decided.device.type,
        dtype=decided.precision.kernel_dtype,
        mask=cleared.objective.mask_kind(document_mask=decided.settings.data.document_mask),
    )
    choice = choose_backend(cleared.family.attention_impl(cleared.config), request, decided.settings.model.attention)
    _log.info("attention: %s", choice)
    return choice


def make_model(
    cleared: Cleared, choice: Choice, source: Checkpoint | None, decided: Decided, processes: Processes
) -> tuple[nn.Module, LoadReport | None]:
    """The model with the checkpoint's weights, or freshly initialised ones; what the file does not have is fresh.

    Where adapters are asked for, they are on it, and all else is frozen.

    Fresh values depend on the seed alone, not on the device. Seeds torch's own generators (dropout) as well. Of several
    processes, each has its pieces alone from the beginning; of a model with adapters (peft puts them on layers that have their
    values) or with new tokens (whose logits are compared with the file's) each makes the whole, and then keeps its pieces.
    """
    device, weights, settings = decided.device, decided.precision.weights, decided.settings
    if device.type == "cpu":
        reuse_freed_memory()
    torch.manual_seed(settings.run.seed)
    generator = torch.Generator().manual_seed(settings.run.seed)
    rows = processes.share.rows(decided.batch_size) if processes.several else None
    drops = getattr(cleared.config, "attention_probs_dropout_prob", 0.0) > 0
    backend: AttentionBackend = ByRow(choice.backend, rows) if rows is not None and drops else choice.backend
    model = build_model(cleared.family.build_model, cleared.config, backend)
    if processes.several and settings.lora.lora_rank is None and not isinstance(source, Grown):
        return _in_pieces(model, cleared, source, decided, processes, generator)
    loaded = None
    if source is not None and isinstance(cleared, ClearedFile):
        loaded = load_weights(model, source, cleared.plan, dtype=weights, device=device, generator=generator)
        if isinstance(source, Grown):
            mask: Mask = Causal() if cleared.family.info.kind == "decoder" else Bidirectional()
            check_old_logits(model, source, cleared.plan, mask=mask, precision=decided.precision)
    else:
        model.to(weights).to_empty(device=device)
        cast(LanguageModel, model).initialize(generator)
    if settings.lora.lora_rank is not None:
        _attach_adapters(model, cleared, settings.lora)
    _set_up(model, cleared, settings, rows)
    if device.type == "cpu" and not processes.several:
        add_rows_apart(model)
    processes.shard(model, decided.precision.autocast)
    return model, loaded


def _set_up(model: nn.Module, cleared: Cleared, settings: Settings, rows: range | None) -> None:
    """What is frozen; training mode; dropout by `rows` where there are any; blocks compiled or computed again, as asked for."""
    for name in parameter_groups(settings, cleared.family, cleared.config).frozen:
        model.get_parameter(name).requires_grad_(False)
    model.train()
    if rows is not None:
        draw_by_row(model, rows)
    if settings.run.recompute and settings.run.recompute_keep == "products":
        recompute_activations(cast(LanguageModel, model), keep_products=True)  # for the compiler to see
    if settings.run.compile:
        compile_blocks(model)
    if settings.run.recompute and settings.run.recompute_keep == "nothing":
        recompute_activations(cast(LanguageModel, model))


def _in_pieces(
    model: nn.Module,
    cleared: Cleared,
    source: Checkpoint | None,
    decided: Decided,
    processes: Processes,
    generator: torch.Generator,
) -> tuple[nn.Module, LoadReport | None]:
    """The same model, sharded while it has no memory yet: no process ever holds more than its pieces and one parameter."""
    _set_up(model, cleared, decided.settings, processes.share.rows(decided.batch_size))
    model.to(decided.precision.weights)
    processes.shard(model, decided.precision.autocast)
    give_memory(model, decided.device, offload=decided.settings.processes.offload)
    if source is None or not isinstance(cleared, ClearedFile):
        cast(LanguageModel, model).initialize(generator)
        return model, None
    verified = getattr(source, "verify_data", False)  # where the run has gathered its inputs
    return model, load_pieces(model, source, cleared.plan, generator=generator, verified=verified)


def model_without_memory(cleared: Cleared, choice: Choice, decided: Decided) -> nn.Module:
    """The model as `make_model` makes it, on the meta device: for a plan."""
    model = build_model(cleared.family.build_model, cleared.config, choice.backend).to(decided.precision.weights)
    if decided.settings.lora.lora_rank is not None:
        _attach_adapters(model, cleared, decided.settings.lora)
    _set_up(model, cleared, decided.settings, None)
    return model


def _attach_adapters(model: nn.Module, cleared: Cleared, lora: LoraSettings) -> None:
    from apr_train.model.adapters import attach  # here, so that other runs do not import peft

    if lora.lora_rank is not None and lora.lora_alpha is not None:
        sites = chosen_sites(lora, cleared.family, cleared.config)
        attach(model, sites, rank=lora.lora_rank, alpha=lora.lora_alpha, dropout=lora.lora_dropout)

"""Models for tests: on the meta device for names and shapes, filled with given tensors, or loaded from a real file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.tie import resolve_tie
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.load_plan import plan_load
from apr_train.family.name_map import NameMap, to_parameters
from apr_train.family.plugin import Family
from apr_train.model.attention import AttentionBackend, Bidirectional, Causal, Mask, load_backend
from apr_train.model.build import build_model
from apr_train.model.cache import KeyValueCache
from apr_train.model.load import LoadReport, load_weights
from apr_train.testing.compare import ConformanceError


def meta_model(family: Family, config: ModelConfig, *, attention: str = "eager") -> nn.Module:
    """The family's model on the meta device: names and shapes, no memory, whatever the size."""
    return build_model(family.build_model, config, load_backend(attention))


def real_model(family: Family, config: ModelConfig, *, attention: str | AttentionBackend = "eager", seed: int = 0) -> nn.Module:
    """The family's model with random weights that show in the output (see `randomize`), in float64, for evaluation."""
    backend = load_backend(attention) if isinstance(attention, str) else attention
    model = build_model(family.build_model, config, backend).to_empty(device="cpu")
    return randomize(model, seed=seed).double().eval()


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter and of every buffer that a state dict has."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def random_tensors(name_map: NameMap, *, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """A float32 tensor of independent random numbers for every checkpoint name that fills a parameter.

    They are multiples of 2⁻¹², so that an offset added and taken away again leaves no rounding.
    """
    source = np.random.default_rng(seed)
    return {name: random_array(source, shape) for name, shape in name_map.tensors.items()}


def random_array(source: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Normally distributed float32 multiples of 2⁻¹²; a zero is positive, for an offset does not keep the sign of one."""
    return np.round(source.standard_normal(shape, dtype=np.float32) * 4096) / np.float32(4096) + np.float32(0)


@torch.no_grad()
def randomize(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give every parameter random values that show in the output; return the model.

    As they are initialised, biases are zero and norms are one: a model that dropped them would agree all the same.
    """
    source = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=source)
        if parameter.dim() > 1:
            value = noise * parameter.shape[1] ** -0.5
        else:
            value = 0.3 * noise if name.endswith("bias") else 1.0 + 0.3 * noise
        parameter.copy_(value.to(parameter.dtype))
    return model


def model_from_tensors(
    family: Family,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    layout: Layout | None = None,
    attention: str = "eager",
    seed: int = 0,
) -> nn.Module:
    """The family's model with these checkpoint tensors (copied) as its parameters, in evaluation mode.

    What the name map lets a file leave out (a bare file's head) is freshly initialised from `seed`.

    Raises:
        ConformanceError: when a tensor is missing, left over or of the wrong shape: the findings of a real load.
    """
    name_map = family.map_tensor_names(config, layout or Layout())
    infos = {name: TensorInfo(name, "F32", tuple(tensor.shape), 0) for name, tensor in tensors.items()}
    plan = plan_load(name_map, infos, where=f"tensors for {family.name}")
    if plan.findings:
        raise ConformanceError.of(plan.findings)
    parameters = {name: tensor.detach().clone() for name, tensor in to_parameters(name_map, tensors).items()}
    model = meta_model(family, config, attention=attention)
    fresh = plan.fresh_parameters
    parameters |= {edge.parameter: torch.empty(edge.parameter_shape) for edge in plan.fresh}
    model.load_state_dict(parameters, strict=True, assign=True)
    if fresh:
        model.initialize(torch.Generator().manual_seed(seed), fresh)  # type: ignore[operator] # LanguageModel's
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def plain_mask(family: Family, keep: Tensor | None = None) -> Mask:
    """The mask of whole rows for a family's kind; `keep` `[batch, length]` says which tokens of an encoder's are real."""
    return Causal() if family.info.kind == "decoder" else Bidirectional(keep)


@torch.no_grad()
def cached_logits(model: Any, tokens: Tensor, sizes: Sequence[int]) -> Tensor:
    """Logits `[batch, length, vocab]` of rows that go through a decoder's cache in pieces of these sizes."""
    cache = KeyValueCache(model.config.num_hidden_layers, max_length=tokens.shape[1])
    parts = []
    for piece in torch.split(tokens, list(sizes), dim=1):
        parts.append(model.logits(model.hidden_states(piece, mask=Causal(offset=cache.length), cache=cache)))
    return torch.cat(parts, dim=1)


def our_logits(family: Family, model: nn.Module, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
    """Logits `[batch, length, vocab]` of a family's model, with the mask that its kind wants."""
    typed: Any = model
    logits: Tensor = typed.logits(typed.hidden_states(tokens, mask=plain_mask(family, keep)))
    return logits


def model_from_file(
    family: Family, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, attention: str = "eager", seed: int = 0
) -> tuple[nn.Module, LoadReport]:
    """Open a checkpoint (any container, file or folder), read the config from it, build, load; in evaluation mode.

    What a bare file lacks is freshly initialised from `seed`.

    Raises:
        AprTrainError: whatever a run would say about the file.
    """
    with open_checkpoint(path) as checkpoint:
        header = resolve_tie(checkpoint)
        config = family.build_config(header=header)
        name_map = family.map_tensor_names(config, family.info.layout_of(header))
        plan = plan_load(name_map, header.tensors, where=header.path)
        model = meta_model(family, config, attention=attention)
        report = load_weights(model, checkpoint, plan, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return model.eval(), report

"""A family's model against another implementation with the same weights: logits, and the gradient of every parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.huggingface import header_from_hf
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import to_parameters
from apr_train.family.plugin import Family
from apr_train.model.attention import Bidirectional, Causal, Mask
from apr_train.testing.compare import FLOAT32, FLOAT64, check_agreement, fail_on
from apr_train.testing.models import model_from_tensors


@frozen
class Agreement:
    """The largest relative errors that were seen; both are within the tolerance."""

    logits: float
    gradients: float


def compare_models(
    family: Family,
    config: ModelConfig,
    reference: nn.Module,
    tokens: Tensor,
    *,
    keep: Tensor | None = None,
    layout: Layout | None = None,
    tolerance: float | None = None,
    attention: str = "eager",
    vanishing: tuple[str, ...] = (),
) -> Agreement:
    """Give the family's model the reference's weights, run both, and compare logits and gradients.

    Args:
        reference: called as `reference(input_ids=…, attention_mask=…).logits`, its state dict in `layout`'s names.
        tokens: `[batch, length]` int64.
        keep: `[batch, length]` bool, True = real token; logits elsewhere are not compared.
        vanishing: endings of parameter names whose gradient is zero by mathematics, so that only rounding is left of it;
            it must be as small on both sides as rounding is.
        tolerance: largest `‖ours − theirs‖ / ‖theirs‖` of one tensor; by default what the weights' dtype can do.

    Raises:
        ConformanceError: naming every tensor that differs more, or that one side does not have.
    """
    layout = layout or Layout()
    state = {name: tensor for name, tensor in reference.state_dict().items() if tensor.is_floating_point()}
    ours = model_from_tensors(family, config, state, layout=layout, attention=attention)
    if tolerance is None:
        tolerance = FLOAT64 if next(ours.parameters()).dtype == torch.float64 else FLOAT32
    logits = our_logits(family, ours, tokens, keep)
    theirs = reference(input_ids=tokens, attention_mask=None if keep is None else keep.long()).logits
    where = f"{family.name} against {type(reference).__name__}"
    error = check_agreement({"logits": _real(logits, keep)}, {"logits": _real(theirs, keep)}, tolerance=tolerance, where=where)
    own_grads = _gradients(ours, logits, tokens, keep)
    grads = to_parameters(family.map_tensor_names(config, layout), _gradients(reference, theirs, tokens, keep))
    where += ", gradients"
    noise = [name for name in own_grads if name.endswith(vanishing)] if vanishing else []
    _check_vanishing(noise, own_grads, grads, tolerance, where)
    kept, reference_kept = ({name: grad for name, grad in side.items() if name not in noise} for side in (own_grads, grads))
    return Agreement(logits=error, gradients=check_agreement(kept, reference_kept, tolerance=tolerance, where=where))


def _check_vanishing(
    names: list[str], ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float, where: str
) -> None:
    largest = tolerance * max(float(grad.norm()) for grad in theirs.values())
    fail_on(
        (f"{name} should have no gradient" for side in (ours, theirs) for name in names if float(side[name].norm()) > largest),
        where=where,
    )


def reference_config(family: Family, reference: Any) -> ModelConfig:
    """The family's config of a transformers model, read as it would be from that model's config.json."""
    infos = {
        name: TensorInfo(name, "F32", tuple(tensor.shape), 4 * tensor.numel())
        for name, tensor in reference.state_dict().items()
    }
    header = header_from_hf(type(reference).__name__, reference.config.to_dict(), infos)
    return family.build_config(header=header)


def our_logits(family: Family, model: nn.Module, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
    """Logits `[batch, length, vocab]` of a family's model, with the mask that its kind wants."""
    mask: Mask = Causal() if family.info.kind == "decoder" else Bidirectional(keep)
    typed: Any = model
    logits: Tensor = typed.logits(typed.hidden_states(tokens, mask=mask))
    return logits


def _real(logits: Tensor, keep: Tensor | None) -> Tensor:
    return logits if keep is None else logits[keep]


def _gradients(model: nn.Module, logits: Tensor, tokens: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy of predicting the token after next, by parameter name.

    Any target that is not the input itself would do; both sides get the same.
    """
    targets = tokens.roll(-2, dims=1)
    loss = F.cross_entropy(_real(logits, keep).flatten(0, -2), _real(targets, keep).flatten())
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None}

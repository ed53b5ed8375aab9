"""A model with new tokens beside the one that it was: the same logits for every token that was there before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from apr_train import rules
from apr_train.checkpoint.grown import Grown
from apr_train.errors import RunError
from apr_train.family.load_plan import LoadPlan
from apr_train.model.attention import Mask
from apr_train.model.device import Precision
from apr_train.model.protocol import LanguageModel
from apr_train.model.tensors import to_torch

_PROBE = 16
"""Tokens of the row whose logits are compared, evenly over the old vocabulary."""
_ROUNDINGS = 8
"""How many units in the last place of the largest logit two products may lie apart that differ in their number of rows."""


@torch.no_grad()
def check_old_logits(model: nn.Module, source: Grown, plan: LoadPlan, *, mask: Mask, precision: Precision) -> None:
    """Compare a model that was loaded from a grown checkpoint with the checkpoint as its file has it.

    Every old row must be the file's, and the logits of old tokens those that the file's own matrices give.

    Args:
        model: with the weights of `source`, as `load_weights` left it; its mode is left as it was.
        plan: by which it was loaded.
        mask: of one row without padding.
        precision: in which the run computes.

    Raises:
        RunError: TOKENS-003, when something differs.
    """
    known = source.growth.known
    old = _old_values(model, source, plan)
    for name, values in old.items():
        if not torch.equal(model.get_parameter(name)[:known], values[:known]):
            raise _changed(source, name, "rows of old tokens as the file has them", "other values")
    training = model.training
    model.eval()
    after = _logits(model, known, mask, precision)
    with _with_values(model, old):
        before = _logits(model, known, mask, precision)
    model.train(training)
    apart, largest = (after - before).abs().max().item(), before.abs().max().item()
    if not apart <= _ROUNDINGS * torch.finfo(precision.autocast or precision.weights).eps * max(largest, 1.0):
        raise _changed(source, "logits", "the logits of the file's own matrices", f"logits that are up to {apart:.3g} apart")


def _old_values(model: nn.Module, source: Grown, plan: LoadPlan) -> dict[str, Tensor]:
    """Parameter → what it is without new rows, from the file."""
    found = {}
    for edge in plan.loads:
        if edge.checkpoint in source.growth.tensors:
            parameter = model.get_parameter(edge.parameter)
            found[edge.parameter] = edge.to_parameter(to_torch(source.base.read(edge.checkpoint))).to(parameter)
    return found


def _logits(model: nn.Module, known: int, mask: Mask, precision: Precision) -> Tensor:
    """`[tokens, known]` float32: of a row of old tokens, for all old tokens."""
    language_model = cast(LanguageModel, model)
    device = language_model.head_weight.device
    length = min(_PROBE, known, language_model.config.usable_positions)
    tokens = torch.linspace(0, known - 1, length, device=device).long()
    with precision.context(device):
        hidden = language_model.hidden_states(tokens[None], mask=mask)
        return language_model.logits(hidden)[0, :, :known].float()


@contextmanager
def _with_values(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other values in some parameters, of another number of rows; under every name that a parameter has."""
    parameters = {name: model.get_parameter(name) for name in values}
    held = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = held[name]


def _changed(source: Grown, field: str, expected: str, found: str) -> RunError:
    problem = "with new tokens the model is no longer the same for the old ones"
    hint = "The family computes something from all rows at once, or its name map moves them: its vocabulary cannot grow."
    return RunError(
        problem, where=source.header.path, field=field, rule=rules.TOKENS_003, expected=expected, found=found, hint=hint
    )

"""Fresh parameters: normal(0, initializer_range) matrices, norms 1, biases 0, padding rows 0 (BERT, GPT-2, Llama alike)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from apr_train.errors import ConfigError
from apr_train.model.norm import RMSNorm
from apr_train.suggest import did_you_mean


@torch.no_grad()
def initialize(model: nn.Module, std: float, generator: torch.Generator, names: Collection[str] | None = None) -> None:
    """Fill the parameters of `model`, or the named ones only, in the order in which the model lists them.

    Values are drawn on the generator's device (use a CPU one) in float32, so they do not depend on the model's device.

    Raises:
        ConfigError: for a name that the model does not have.
    """
    known = dict(model.named_parameters())
    for name in names or ():
        if name not in known:
            raise ConfigError("no such parameter", where=name, hint=did_you_mean(name, known))
    for name, parameter in known.items():
        if names is None or name in names:
            path, _, leaf = name.rpartition(".")
            _fill(model.get_submodule(path), leaf, parameter, std, generator)


def _fill(owner: nn.Module, leaf: str, parameter: Tensor, std: float, generator: torch.Generator) -> None:
    if leaf == "bias":
        parameter.zero_()
    elif isinstance(owner, RMSNorm | nn.LayerNorm):
        parameter.fill_(1.0)
    else:
        drawn = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
        parameter.copy_(drawn.normal_(0.0, std, generator=generator))
        if isinstance(owner, nn.Embedding) and owner.padding_idx is not None:
            parameter[owner.padding_idx].zero_()

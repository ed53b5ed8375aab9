"""Norms of the residual stream, of q and of k: RMSNorm, with or without an offset, and the choice between it and LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apr_train.errors import ConfigError
from apr_train.family.decoder_config import DecoderConfig


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · (offset + weight) over the last dimension (Zhang & Sennrich 2019), in float32 at least.

    Without an offset the order of the casts is that of transformers' LlamaRMSNorm: back to the input's dtype, then the
    weight. With one it is that of its GemmaRMSNorm: the weight in float32 too, then back to the input's dtype.
    """

    def __init__(self, size: int, eps: float, *, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` in and out."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.offset:
            return (wide * (self.offset + self.weight.to(wide.dtype))).to(x.dtype)
        return self.weight * wide.to(x.dtype)

    def initial_value(self, leaf: str) -> float:
        """The weight's start value, with which the norm multiplies by one; see `apr_train.model.init`."""
        return 1.0 - self.offset

    def extra_repr(self) -> str:
        """Size, eps, and the offset where there is one."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}" + (f", offset={self.offset}" if self.offset else "")


def make_norm(config: DecoderConfig) -> nn.Module:
    """The norm of a decoder's residual stream: RMSNorm or LayerNorm over hidden_size.

    Raises:
        ConfigError: for a config without the norm's epsilon.
    """
    if config.norm_eps is None:
        raise ConfigError("a norm without its epsilon", where=type(config).__name__, expected="a number > 0", found=None)
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.norm_bias)
    return RMSNorm(config.hidden_size, config.norm_eps, offset=config.norm_offset)

"""The layers of decoder and encoder: RMSNorm, rotary embedding, MLPs, self-attention around a backend; their fresh values."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apr_train.errors import ConfigError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.family.rope_scaling import Llama3Scaling
from apr_train.model.attention import AttentionBackend, Mask
from apr_train.model.cache import KeyValueCache
from apr_train.suggest import did_you_mean


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich 2019), in float32 at least.

    The order of the casts is that of transformers' LlamaRMSNorm: back to the input's dtype, then the weight.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` in and out."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)

    def extra_repr(self) -> str:
        """Size and eps."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, hidden: int, intermediate: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=bias)
        self.up_proj = nn.Linear(hidden, intermediate, bias=bias)
        self.down_proj = nn.Linear(intermediate, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden]` in and out."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class GeluMLP(nn.Module):
    """down(gelu(up(x))) with the exact (erf) GELU."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden, intermediate)
        self.down_proj = nn.Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden]` in and out."""
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x)))
        return out


class GroupedQueryAttention(nn.Module):
    """Rotary attention whose k and v heads each serve several query heads (Ainslie et al. 2023)."""

    def __init__(self, config: DecoderConfig, backend: AttentionBackend, layer: int) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        queries, pairs = config.num_attention_heads * dim, config.num_key_value_heads * dim
        self.head_dim, self.layer, self.backend = dim, layer, backend
        self.q_proj = nn.Linear(hidden, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, pairs, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, pairs, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, hidden, bias=config.attention_output_bias)

    def forward(self, x: Tensor, rotary: Rotary, mask: Mask, cache: KeyValueCache | None = None) -> Tensor:
        """`[batch, length, hidden]` in and out; with a cache, keys and values of earlier tokens are added."""
        q = rotate(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), rotary)
        k = rotate(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), rotary)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        out: Tensor = self.o_proj(self.backend(q, k, v, mask).flatten(2))
        return out


class FullAttention(nn.Module):
    """Attention without positions, with biases everywhere and dropout on its weights in training."""

    def __init__(self, config: EncoderConfig, backend: AttentionBackend) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.head_dim, self.backend, self.dropout = config.head_dim, backend, config.attention_probs_dropout_prob
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.o_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """`[batch, length, hidden]` in and out."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out: Tensor = self.o_proj(self.backend(q, k, v, mask, dropout=self.dropout if self.training else 0.0).flatten(2))
        return out


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


Rotary = tuple[Tensor, Tensor]
"""cos and sin, each `[batch or 1, length, 1, head_dim / 2]`."""


def rotary_tables(config: DecoderConfig, positions: Tensor, dtype: torch.dtype) -> Rotary:
    """Make cos and sin for `positions` `[batch or 1, length]`, in float32, or float64 for a float64 model.

    They are made anew for each batch: no buffer means nothing to restore after building on the meta device.
    """
    wide = torch.promote_types(dtype, torch.float32)
    frequencies = inverse_frequencies(config, device=positions.device, dtype=wide)
    angles = positions[..., None, None].to(wide) * frequencies
    return angles.cos(), angles.sin()


def inverse_frequencies(config: DecoderConfig, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """theta^(-2i/head_dim) for i < head_dim/2, stretched when the config says so: `[head_dim / 2]`."""
    exponents = torch.arange(0, config.head_dim, 2, device=device).to(dtype) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    return frequencies if config.rope_scaling is None else _stretch(frequencies, config.rope_scaling)


def _stretch(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a ramp between.

    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.
    """
    original = scaling.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    stretched = torch.where(wavelengths > original / scaling.low_freq_factor, frequencies / scaling.factor, frequencies)
    ramp = (original / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    ramped = (1 - ramp) * stretched / scaling.factor + ramp * stretched
    short = wavelengths < original / scaling.high_freq_factor
    long = wavelengths > original / scaling.low_freq_factor
    return torch.where(~short & ~long, ramped, stretched)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn each pair (x[i], x[i + head_dim/2]) of `[batch, length, heads, head_dim]` by its position's angle."""
    cos, sin = rotary
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

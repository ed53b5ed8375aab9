"""Rotary position embedding with split halves (Su et al. 2021, in the row order of Hugging Face files)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apr_train.family.decoder_config import DecoderConfig, RopeScaling

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


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
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

"""Rotary positions (Su et al. 2021): tables of cos and sin, made anew for each batch, and the rotation of heads by them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apr_train.checkpoint.implied import implied_attention
from apr_train.errors import ConfigError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.rope_scaling import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling

Rotary = tuple[Tensor, Tensor]
"""cos and sin, each `[batch or 1, length, 1, rotary_dim / 2]`."""


def rotary_tables(
    config: DecoderConfig,
    positions: Tensor,
    dtype: torch.dtype,
    *,
    local: bool = False,
    longest: int | Tensor | None = None,
) -> Rotary:
    """Make cos and sin for `positions` `[batch or 1, length]`, in float32, or float64 for a float64 model.

    They are made anew for each batch: no buffer means nothing to restore after building on the meta device.

    Args:
        local: make them from `rope_local_base_freq`, unscaled: those of sliding layers that have a base of their own.
        longest: length of the sequence for which `positions` are, all of it, or of each token's own, `[batch, length]`:
            LongRoPE has other frequencies beyond the original context. The largest of `positions` + 1 when not given.
    """
    wide = torch.promote_types(dtype, torch.float32)
    if longest is None and isinstance(config.rope_scaling, LongRopeScaling):
        longest = positions.max() + 1
    frequencies = inverse_frequencies(config, device=positions.device, dtype=wide, local=local, longest=longest)
    angles = positions[..., None, None].to(wide) * frequencies.unsqueeze(-2)
    factor = 1.0 if local else table_factor(config)
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def inverse_frequencies(
    config: DecoderConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    local: bool = False,
    longest: int | Tensor | None = None,
) -> Tensor:
    """theta^(-2i/rotary_dim) for i < rotary_dim/2, stretched when the config says so: `[rotary_dim / 2]`.

    `local` and `longest` are those of `rotary_tables`; `longest` counts as short when not given. With one for each token,
    LongRoPE has `[batch, length, rotary_dim / 2]`.

    Raises:
        ConfigError: when the config has no base for them.
    """
    base = config.rope_local_base_freq if local else config.rope_theta
    if base is None:
        name = "rope_local_base_freq" if local else "rope_theta"
        raise ConfigError("rotary positions without a base", where=f"{type(config).__name__} [{name}]", found=None)
    exponents = torch.arange(0, config.rotary_dim, 2, device=device).to(dtype) / config.rotary_dim
    frequencies = 1.0 / (base**exponents)
    scaling = None if local else config.rope_scaling
    match scaling:
        case None:
            return frequencies
        case LinearScaling():
            return frequencies / scaling.factor
        case Llama3Scaling():
            return _llama3(frequencies, scaling)
        case YarnScaling():
            return _yarn(frequencies, scaling, base, config.rotary_dim)
        case LongRopeScaling():
            return frequencies / _longrope_divisors(scaling, frequencies, 0 if longest is None else longest)


def table_factor(config: DecoderConfig) -> float:
    """The factor that a scaling puts on cos and sin, and so, squared, on the scores of attention.

    Sources: YaRN (Peng et al. 2023, section 3.4), LongRoPE (Ding et al. 2024), with the defaults of
    `_compute_yarn_parameters` and `_compute_longrope_parameters` in transformers' modeling_rope_utils.
    """
    scaling = config.rope_scaling
    if not isinstance(scaling, YarnScaling | LongRopeScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if isinstance(scaling, YarnScaling):
        if scaling.mscale is not None and scaling.mscale_all_dim is not None:
            return _yarn_factor(scaling.factor, scaling.mscale) / _yarn_factor(scaling.factor, scaling.mscale_all_dim)
        return _yarn_factor(scaling.factor, 1.0)
    return implied_attention(scaling.factor, scaling.original_max_position_embeddings, config.max_position_embeddings)


def _yarn_factor(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
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


def _yarn(frequencies: Tensor, scaling: YarnScaling, base: float, rotary_dim: int) -> Tensor:
    """YaRN's "NTK by parts": dimensions below a border kept, those above another divided by `factor`, a ramp between.

    A border is the dimension that turns `beta` times within the original context. Source: Peng et al. 2023, section 3.2,
    with the rounding of `_compute_yarn_parameters` in transformers' modeling_rope_utils.
    """
    original = scaling.original_max_position_embeddings
    low, high = (
        rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = high - low or 0.001  # as transformers has it: a step instead of a division by zero
    dimensions = torch.arange(rotary_dim // 2, device=frequencies.device).to(frequencies.dtype)
    divided = ((dimensions - low) / width).clamp(0, 1)
    return frequencies / scaling.factor * divided + frequencies * (1 - divided)


def _longrope_divisors(scaling: LongRopeScaling, like: Tensor, longest: int | Tensor) -> Tensor:
    """`long_factor` for a sequence that is longer than the original context, else `short_factor`: `[…, rotary_dim / 2]`.

    A tensor decides without a copy from its device. Source: `_compute_longrope_parameters` in transformers.
    """
    short, long = (torch.tensor(x, dtype=like.dtype, device=like.device) for x in (scaling.short_factor, scaling.long_factor))
    is_long = torch.as_tensor(longest, device=like.device) > scaling.original_max_position_embeddings
    return torch.where(is_long[..., None], long, short)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs (x[i], x[i + rotary_dim/2]) of `[batch, length, heads, head_dim]` by their positions' angles.

    Dimensions from rotary_dim on stay as they are.
    """
    cos, sin = rotary
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], rotary), x[..., width:]), dim=-1)
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

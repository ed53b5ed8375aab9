"""Block-quantised dtypes decoded to float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from apr_train.checkpoint.dtypes import DType

Array = np.ndarray[Any, Any]
_SMALLEST_NORMAL_F16 = np.float16(2.0**-14)


def decode(dtype: DType, raw: memoryview, elements: int) -> Array:
    """Float32 `[elements]` of a whole tensor's bytes, or of some of its blocks (of a dtype without a prefix)."""
    if dtype.name == "APR_Q8":
        return _decode_q8(raw)
    if dtype.name == "APR_Q4":
        return _decode_q4(raw)[:elements]
    return _decode_ggml(dtype, raw)


def _decode_q4(raw: memoryview) -> Array:
    """Blocks of 18 bytes: an F16 scale and 32 nibbles, low one first; a scale that is no normal number is 0."""
    blocks = np.frombuffer(raw, np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)]))
    scale = blocks["scale"]
    usable = np.isfinite(scale) & (np.abs(scale) >= _SMALLEST_NORMAL_F16)
    factors = np.where(usable, scale, np.float16(0)).astype(np.float32)[:, None]
    values = np.empty((len(blocks), 32), np.float32)
    values[:, 0::2] = (blocks["nibbles"] & 15).astype(np.int8) - 8
    values[:, 1::2] = (blocks["nibbles"] >> 4).astype(np.int8) - 8
    values *= factors
    return values.reshape(-1)


def _decode_q8(raw: memoryview) -> Array:
    """One F32 scale, then a signed byte an element."""
    if not len(raw):
        return np.empty(0, np.float32)
    scale = np.frombuffer(raw, "<f4", 1)[0]
    with np.errstate(invalid="ignore", over="ignore"):  # a NaN scale is the file's; the scan for NaN reports it
        values: Array = np.frombuffer(raw, np.int8, offset=4).astype(np.float32) * scale
        return values


def _decode_ggml(dtype: DType, raw: memoryview) -> Array:
    """llama.cpp's super-blocks, by its own package."""
    from gguf import GGMLQuantizationType  # its import takes a while: only files with such tensors pay
    from gguf.quants import dequantize

    blocks = np.frombuffer(raw, np.uint8).reshape(-1, dtype.block_bytes)
    with np.errstate(invalid="ignore", over="ignore"):  # as above
        return np.ascontiguousarray(dequantize(blocks, GGMLQuantizationType[dtype.name]), np.float32).reshape(-1)

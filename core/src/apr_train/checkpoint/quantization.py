"""Block-quantised tensors as float32: GGML's blocks by llama.cpp's own package, aprender's two kinds here.

The gguf package takes a while to import: only a GGUF file, or a tensor of GGML's blocks, pays for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from apr_train.checkpoint.dtypes import DTYPES, Array, DType
from apr_train.errors import FormatError

BLOCKS_AT_ONCE = 1 << 14
"""Blocks dequantised in one call: enough to be fast, few enough that the temporaries stay in the cache."""
_SMALLEST_NORMAL_F16 = np.float16(2.0**-14)


@cache
def ggml_types() -> Mapping[int, DType]:
    """GGML's type id → type, as the installed gguf package knows them."""
    from gguf.constants import GGML_QUANT_SIZES

    return {
        kind.value: DTYPES.get(kind.name) or DType(kind.name, size, block=block)
        for kind, (block, size) in GGML_QUANT_SIZES.items()
    }


def dequantize(dtype: DType, raw: memoryview, elements: int, *, path: object, name: str) -> Array:
    """A whole tensor's bytes, or some whole blocks of one (behind its prefix, where the type has one), as float32.

    Returns:
        `[n]`, read-only: at most `elements` values, fewer where `raw` holds fewer blocks. GGML's are bit for bit those of
        the gguf package.

    Raises:
        FormatError: for a type that the gguf package cannot dequantise; it names the tensor `name` of the file `path`.
    """
    if dtype.name == "APR_Q8":
        values = _apr_q8(raw)
    elif dtype.name == "APR_Q4":
        values = _apr_q4(raw)
    else:
        values = _ggml(dtype, raw, path, name)
    values.flags.writeable = False
    return values[:elements]


def _apr_q4(raw: memoryview) -> Array:
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


def _apr_q8(raw: memoryview) -> Array:
    """One F32 scale, then a signed byte an element."""
    if not len(raw):
        return np.empty(0, np.float32)
    scale = np.frombuffer(raw, "<f4", 1)[0]
    with np.errstate(invalid="ignore", over="ignore"):  # a NaN scale is the file's; the scan for NaN reports it
        values: Array = np.frombuffer(raw, np.int8, offset=4).astype(np.float32) * scale
        return values


def _ggml(dtype: DType, raw: memoryview, path: object, name: str) -> Array:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as blocks_to_floats

    blocks = np.frombuffer(raw, np.uint8).reshape(-1, dtype.block_bytes)
    values = np.empty(len(blocks) * dtype.block, np.float32)
    with np.errstate(all="ignore"):  # a damaged scale may be infinite: the value is then what the format says
        for start in range(0, len(blocks), BLOCKS_AT_ONCE):
            piece = blocks[start : start + BLOCKS_AT_ONCE].reshape(1, -1)
            try:
                floats = blocks_to_floats(piece, GGMLQuantizationType[dtype.name])
            except NotImplementedError as error:
                raise FormatError(f"{dtype.name} cannot be dequantised", path=path, field=name) from error
            values[start * dtype.block : start * dtype.block + floats.size] = floats.reshape(-1)
    return values

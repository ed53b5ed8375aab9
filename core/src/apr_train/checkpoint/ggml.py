"""GGML's tensor types: sizes, and block-quantised data as float32 by llama.cpp's own dequantisers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from attrs import frozen

from apr_train.errors import FormatError

PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F64", "I8": "I8", "I16": "I16", "I32": "I32", "I64": "I64"}
"""Types that are no blocks, under their safetensors names."""
BLOCKS_AT_ONCE = 1 << 14
"""Blocks dequantised in one call: enough to be fast, few enough that the temporaries stay in the cache."""


@frozen
class GgmlType:
    """One type: `block` elements are stored in `bytes` bytes."""

    id: int
    name: str
    block: int
    bytes: int

    @property
    def quantized(self) -> bool:
        """Whether the data are blocks."""
        return self.name not in PLAIN


def _types() -> dict[int, GgmlType]:
    from gguf.constants import GGML_QUANT_SIZES

    return {kind.value: GgmlType(kind.value, kind.name, block, size) for kind, (block, size) in GGML_QUANT_SIZES.items()}


GGML_TYPES = _types()
"""Type id → type, as the installed gguf package knows them."""


def dequantize(kind: GgmlType, raw: memoryview, shape: tuple[int, ...], *, path: object, name: str) -> np.ndarray[Any, Any]:
    """Block-quantised bytes as float32 in the tensor's shape; values are bit for bit those of the gguf package.

    Raises:
        FormatError: for a type that the gguf package cannot dequantise, named.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as blocks_to_floats

    blocks = np.frombuffer(raw, np.uint8).reshape(-1, kind.bytes)
    values = np.empty(math.prod(shape), np.float32)
    with np.errstate(all="ignore"):  # a damaged scale may be infinite: the value is then what the format says
        for start in range(0, len(blocks), BLOCKS_AT_ONCE):
            piece = blocks[start : start + BLOCKS_AT_ONCE].reshape(1, -1)
            try:
                floats = blocks_to_floats(piece, GGMLQuantizationType(kind.id))
            except NotImplementedError as error:
                raise FormatError(f"{kind.name} cannot be dequantised", path=path, field=name) from error
            values[start * kind.block : start * kind.block + floats.size] = floats.reshape(-1)
    return values.reshape(shape)

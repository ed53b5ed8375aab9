"""Floats from one width to another with numpy alone, in pieces so that the temporaries stay small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from apr_train.checkpoint.checkpoint import FLOAT_DTYPES, TensorView
from apr_train.errors import FormatError

Array = np.ndarray[Any, Any]
PIECE = 1 << 20
"""Elements converted at a time."""
_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def cast_pieces(view: TensorView, dtype: str, *, path: object, name: str) -> Iterator[Array]:
    """The tensor's elements in row-major order as arrays of `dtype`'s bits (bf16 as uint16), rounded to nearest even.

    Raises:
        FormatError: for a dtype that is no float, or a finite value that the narrower type cannot hold.
    """
    if view.dtype not in FLOAT_DTYPES or dtype not in FLOAT_DTYPES:
        raise FormatError("not a float tensor", path=path, field=name, expected=", ".join(FLOAT_DTYPES), found=view.dtype)
    flat = np.ascontiguousarray(view.data).reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        if view.dtype == dtype:
            yield piece
            continue
        found = _cast(piece, view.dtype, dtype)
        if _overflows(piece, view.dtype, found, dtype):
            hint = "Take --dtype bf16 or f32."
            raise FormatError(f"a value is too large for {dtype}", path=path, field=name, found=view.dtype, hint=hint)
        yield found


def _cast(piece: Array, source: str, target: str) -> Array:
    wide = bf16_to_f32(piece) if source == "BF16" else piece
    with np.errstate(over="ignore", invalid="ignore"):
        return f32_to_bf16(wide.astype(np.float32)) if target == "BF16" else wide.astype(_NUMPY[target])


def _overflows(piece: Array, source: str, found: Array, target: str) -> bool:
    if FLOAT_DTYPES[target] >= FLOAT_DTYPES[source] and (source, target) != ("BF16", "F16"):
        return False
    before = bf16_to_f32(piece) if source == "BF16" else piece
    after = bf16_to_f32(found) if target == "BF16" else found
    return bool(np.any(np.isinf(after) & np.isfinite(before)))


def bf16_to_f32(bits: Array) -> Array:
    """uint16 bits → float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: Array) -> Array:
    """float32 → uint16 bits, rounded to nearest even as hardware does; a NaN stays one, with its sign."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), ((bits >> 16) | 0x40).astype(np.uint16), rounded)

"""Element types: the one table of them, and what numpy does with their bytes: views, casts, the spelling of a float."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from attrs import frozen

from apr_train.checkpoint.checkpoint import TensorView
from apr_train.errors import FormatError

Array = np.ndarray[Any, Any]
PIECE = 1 << 20
"""Elements converted at a time, so that the temporaries stay small."""


@frozen
class DType:
    """One element type: blocks of `block` elements in `block_bytes` bytes each, after `prefix` bytes for the whole tensor."""

    name: str
    """safetensors' spelling (`F32`, `BF16`), GGML's (`Q4_K`), or this package's for aprender's own blocks (`APR_Q4`)."""
    block_bytes: int
    block: int = 1
    numpy: str | None = None
    """numpy's type of the stored bits (bf16 and eight-bit floats as unsigned integers); None: decoded to float32 when read,
    or `packed`."""
    torch: str | None = None
    """The attribute of `torch`, also the word in a config.json; None where models here hold no such tensors."""
    apr_ids: tuple[int, ...] = ()
    """The ids in an `.apr` index; the first is written, all are read."""
    prefix: int = 0
    is_float: bool = False
    """Whether weights are trained, converted and cast in this type."""
    pads: bool = False
    """Whether the last block may be incomplete in elements, and is filled up."""
    packed: bool = False
    """Whether several elements share a byte and nothing here takes them apart: such a tensor has bytes and no values."""

    @property
    def quantized(self) -> bool:
        """Whether elements are decoded to float32 when read."""
        return self.numpy is None and not self.packed

    def fits(self, elements: int) -> bool:
        """Whether a tensor can have so many elements: they fill whole blocks, or the last one is filled up."""
        return self.pads or elements % self.block == 0

    def has_whole_rows(self, shape: tuple[int, ...]) -> bool:
        """Whether each row of a tensor is blocks of its own, so that rows can be reordered without being decoded."""
        return not self.prefix and len(shape) > 1 and shape[-1] % self.block == 0

    def nbytes(self, elements: int) -> int:
        """Bytes of a tensor of `elements` elements."""
        return self.prefix + -(-elements // self.block) * self.block_bytes if elements else 0


_TABLE = (
    DType("BOOL", 1, numpy="?", torch="bool"),
    DType("U8", 1, numpy="u1", torch="uint8", apr_ids=(7,)),
    DType("I8", 1, numpy="i1", torch="int8", apr_ids=(6,)),
    DType("F4", 1, block=2, packed=True),
    DType("F6_E2M3", 3, block=4, packed=True),
    DType("F6_E3M2", 3, block=4, packed=True),
    DType("F8_E5M2", 1, numpy="u1"),
    DType("F8_E4M3", 1, numpy="u1"),
    DType("F8_E8M0", 1, numpy="u1"),
    DType("F8_E4M3FNUZ", 1, numpy="u1"),
    DType("F8_E5M2FNUZ", 1, numpy="u1"),
    DType("U16", 2, numpy="<u2"),
    DType("I16", 2, numpy="<i2", torch="int16"),
    DType("F16", 2, numpy="<f2", torch="float16", apr_ids=(1,), is_float=True),
    DType("BF16", 2, numpy="<u2", torch="bfloat16", apr_ids=(30,), is_float=True),
    DType("U32", 4, numpy="<u4"),
    DType("I32", 4, numpy="<i4", torch="int32", apr_ids=(4,)),
    DType("F32", 4, numpy="<f4", torch="float32", apr_ids=(0,), is_float=True),
    DType("U64", 8, numpy="<u8"),
    DType("I64", 8, numpy="<i8", torch="int64", apr_ids=(5,)),
    DType("F64", 8, numpy="<f8", torch="float64", apr_ids=(3,), is_float=True),
    DType("C64", 8, numpy="<c8"),
    DType("Q4_K", 144, block=256, apr_ids=(12,)),
    DType("Q6_K", 210, block=256, apr_ids=(14,)),
    # 8 and 9 are the ids of older files, before GGML's own 8 and 9 were given room
    DType("APR_Q4", 18, block=32, apr_ids=(128, 8), pads=True),
    DType("APR_Q8", 1, apr_ids=(129, 9), prefix=4),
)
DTYPES = {dtype.name: dtype for dtype in _TABLE}
"""Name → type: all of safetensors' and of `.apr`'s; GGML's other blocks are in `quantization.ggml_types`."""
PLAIN = {name: dtype for name, dtype in DTYPES.items() if dtype.numpy is not None}
"""The types whose bytes numpy reads as they lie in the file."""
SAFETENSORS = {name: dtype for name, dtype in DTYPES.items() if not dtype.quantized}
"""The types that safetensors has."""
PACKED = tuple(name for name, dtype in DTYPES.items() if dtype.packed)
"""Those of them that have bytes and no values here."""
APR_DTYPES = {number: dtype for dtype in _TABLE for number in dtype.apr_ids}
"""Id in an `.apr` index → type, of every id that is read."""
APR_IDS = {dtype.name: dtype.apr_ids[0] for dtype in _TABLE if dtype.apr_ids}
"""Name → the id that is written into an `.apr` index."""
BLOCKS = tuple(name for name, dtype in DTYPES.items() if dtype.quantized)
"""The block-quantised types that `.apr` can hold."""
FLOATS = tuple(dtype.name for dtype in sorted(_TABLE, key=lambda dtype: -dtype.block_bytes) if dtype.is_float)
"""The types of weights, widest first."""


_MAX_ELEMENTS = 1 << 59
"""Bound on the product of a shape's non-zero sizes: what numpy can address, with room for elements of eight bytes."""


def addressable(shape: Iterable[int]) -> bool:
    """Whether an array can have the shape; one of no elements cannot have any either."""
    return math.prod(size or 1 for size in shape) <= _MAX_ELEMENTS


def plain_view(dtype: str, shape: tuple[int, ...], raw: memoryview) -> TensorView:
    """A tensor of one of the types in `PLAIN` over its bytes, without a copy."""
    data: Array = np.frombuffer(raw, PLAIN[dtype].numpy).reshape(shape)
    return TensorView(dtype, data)


def bytes_of(data: Array | memoryview | bytes | bytearray) -> memoryview:
    """The bytes of an array in row-major order (little-endian, as on every machine that torch runs on), or of a buffer."""
    view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def cast_pieces(view: TensorView, dtype: str, *, path: object, name: str) -> Iterator[Array]:
    """The tensor's elements in row-major order as arrays of `dtype`'s bits (bf16 as uint16), rounded to nearest even.

    Raises:
        FormatError: for a dtype that is no float, or a finite value that the narrower type cannot hold.
    """
    if view.dtype not in FLOATS or dtype not in FLOATS:
        raise FormatError("not a float tensor", path=path, field=name, expected=", ".join(FLOATS), found=view.dtype)
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
    wide = values_of(piece, source)
    with np.errstate(over="ignore", invalid="ignore"):
        return f32_to_bf16(wide.astype(np.float32)) if target == "BF16" else wide.astype(DTYPES[target].numpy)


def _overflows(piece: Array, source: str, found: Array, target: str) -> bool:
    if DTYPES[target].block_bytes >= DTYPES[source].block_bytes and (source, target) != ("BF16", "F16"):
        return False
    return bool(np.any(np.isinf(values_of(found, target)) & np.isfinite(values_of(piece, source))))


def values_of(stored: Array, dtype: str) -> Array:
    """The numbers of one of the types in `PLAIN` from its stored bits: bf16 as float32, the others as numpy has them."""
    return bf16_to_f32(stored) if dtype == "BF16" else stored


def bf16_to_f32(bits: Array) -> Array:
    """uint16 bits → float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: Array) -> Array:
    """float32 → uint16 bits, rounded to nearest even as hardware does; a NaN stays one, with its sign."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def shortest_f32(value: float) -> float:
    """The decimal with the fewest digits that reads back to the same 32-bit float: 1e-5 rather than 9.999999747378752e-06.

    What has no 32-bit float (nan, infinity, a number out of range) is returned as it is.
    """
    if not math.isfinite(value):
        return value
    stored = _f32_bytes(value)
    if stored is None:
        return value
    for digits in range(1, 10):
        candidate = float(f"{value:.{digits}g}")
        if _f32_bytes(candidate) == stored:
            return candidate
    return value


def _f32_bytes(value: float) -> bytes | None:
    """None for a number that rounds beyond the largest float32, as fewer digits of a number near it may."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return None

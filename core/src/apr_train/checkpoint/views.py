"""Bytes of a memory map as numpy arrays, without a copy where the dtype allows."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from apr_train.checkpoint.checkpoint import TensorView
from apr_train.errors import FormatError

NUMPY = {
    "BOOL": np.dtype("bool"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "F8_E5M2": np.dtype("u1"), "F8_E4M3": np.dtype("u1"),
    "U16": np.dtype("<u2"), "I16": np.dtype("<i2"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"), "I64": np.dtype("<i8"), "F64": np.dtype("<f8"),
}  # fmt: skip
"""dtype → numpy's type of the stored bits; bf16 and the eight-bit floats as unsigned integers."""


def map_file(path: Path) -> memoryview:
    """A whole file, read-only, memory-mapped; closed with the last view of it.

    Raises:
        FormatError: when the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", path=path) from error


def plain_view(dtype: str, shape: tuple[int, ...], raw: memoryview) -> TensorView:
    """A tensor of a plain dtype, zero-copy."""
    data: np.ndarray[Any, Any] = np.frombuffer(raw, dtype=NUMPY[dtype]).reshape(shape)
    return TensorView(dtype, data)

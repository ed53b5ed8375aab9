"""The header of a safetensors file, checked before anything else is touched.

Format: 8 bytes of little-endian length, that many bytes of JSON, then the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from attrs import frozen

from apr_train.checkpoint.header import TensorInfo
from apr_train.errors import FormatError

DTYPES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""safetensors' spelling → bytes per element."""
MAX_HEADER = 100_000_000
"""The safetensors library's own limit."""
MAX_DIMENSIONS = 64


@frozen
class Extent:
    """Where a tensor's bytes lie in its file."""

    start: int
    end: int


@frozen(kw_only=True)
class Index:
    """A checked header: tensors, absolute extents, and the free-form string metadata."""

    tensors: Mapping[str, TensorInfo]
    extents: Mapping[str, Extent]
    metadata: Mapping[str, str]


def read_index(path: Path) -> Index:
    """Read and check a file's header; of the data only its length is looked at.

    Raises:
        FormatError: for a length that lies, JSON that is none, unknown dtypes, wrong sizes, holes or overlaps.
    """
    try:
        with path.open("rb") as file:
            file_size = path.stat().st_size
            raw = _header_bytes(file, file_size, path)
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", path=path) from error
    entries = _entries(raw, path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise FormatError("not a table of strings", path=path, field="__metadata__")
    base = 8 + len(raw)
    tensors: dict[str, TensorInfo] = {}
    extents: dict[str, Extent] = {}
    for name, entry in entries.items():
        tensors[name], (start, end) = _tensor(name, entry, path)
        extents[name] = Extent(base + start, base + end)
    _check_cover(extents, base, file_size, path)
    return Index(tensors=tensors, extents=extents, metadata=metadata)


def _header_bytes(file: BinaryIO, file_size: int, path: Path) -> bytes:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise FormatError(
            "too short for a safetensors file", path=path, expected="at least 8 bytes", found=f"{file_size} bytes"
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER, file_size - 8):
        limit = min(MAX_HEADER, file_size - 8)
        raise FormatError("the header is longer than the file", path=path, field="header length", expected=limit, found=length)
    return file.read(length)


def _entries(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise FormatError("a key is there twice", path=path, field="header")
        return table

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the header is not valid JSON: {error}", path=path, field="header") from error
    if not isinstance(entries, dict):
        raise FormatError("the header is not an object", path=path, field="header")
    return entries


def _tensor(name: str, entry: Any, path: Path) -> tuple[TensorInfo, tuple[int, int]]:
    field = _printable(name)
    if not name or "\0" in name or field != name:
        raise FormatError("not a usable tensor name", path=path, field=field)
    if not isinstance(entry, dict):
        raise FormatError("not an object", path=path, field=field)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(
            "unknown dtype", path=path, field=field, expected=f"one of {', '.join(DTYPES)}", found=repr(dtype)[:40]
        )
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise FormatError("not a shape", path=path, field=field, expected="non-negative integers", found=repr(shape)[:80])
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError("not a pair of offsets", path=path, field=field, found=repr(offsets)[:80])
    nbytes = DTYPES[dtype] * math.prod(shape)
    if offsets[1] - offsets[0] != nbytes:
        found = offsets[1] - offsets[0]
        raise FormatError("size and shape disagree", path=path, field=field, expected=f"{nbytes} bytes", found=found)
    return TensorInfo(name, dtype, tuple(shape), nbytes), (offsets[0], offsets[1])


def _printable(name: str) -> str:
    """The name without lone surrogates, which JSON can smuggle in and no file system or terminal takes."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _sizes(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    return all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63 for item in value)


def _check_cover(extents: Mapping[str, Extent], base: int, file_size: int, path: Path) -> None:
    """The tensors must cover the data from its first byte to its last, once: that is safetensors' own rule."""
    at = base
    for name, extent in sorted(extents.items(), key=lambda item: (item[1].start, item[1].end)):
        if extent.start != at:
            problem = "overlaps another tensor" if extent.start < at else "leaves a hole before it"
            raise FormatError(problem, path=path, field=name, expected=at - base, found=extent.start - base)
        at = extent.end
    if at != file_size:
        raise FormatError(
            "the file is not as long as its header says", path=path, expected=f"{at} bytes", found=f"{file_size} bytes",
            hint="It is truncated, or something was appended.",
        )  # fmt: skip

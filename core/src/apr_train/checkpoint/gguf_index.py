"""The front of a GGUF file: metadata and tensor index, checked before any tensor is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.ggml import GGML_TYPES, GgmlType
from apr_train.checkpoint.gguf_values import Cursor
from apr_train.checkpoint.header import TensorInfo
from apr_train.errors import FormatError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32


@frozen
class Place:
    """Where a tensor's bytes lie in the file, and how they are encoded."""

    start: int
    end: int
    kind: GgmlType


@frozen(kw_only=True)
class GgufIndex:
    """A checked front: metadata by its GGUF keys, tensors (shapes outermost first) and their places."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, Place]


def read_gguf_index(data: memoryview, path: Path) -> GgufIndex:
    """Parse and check the front of a file of which `data` is the whole content.

    Raises:
        FormatError: for anything that is not as the format says, or that does not fit into the file.
    """
    cursor = Cursor(data, path)
    if bytes(cursor.take(4)) != MAGIC:
        cursor.fail("not a GGUF file", rule=rules.INIT_004, expected=MAGIC, found=bytes(data[:4]))
    _check_version(cursor)
    tensor_count, pair_count = cursor.u64(), cursor.u64()
    metadata = _metadata(cursor, cursor.count(pair_count, 13, "metadata entries"))
    alignment = _alignment(metadata, cursor)
    entries = [_entry(cursor) for _ in range(cursor.count(tensor_count, 24, "tensors"))]
    base = cursor.at + -cursor.at % alignment
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    for name, shape, kind, offset in entries:
        cursor.field = name
        if name in tensors:
            cursor.fail("the tensor is there twice")
        nbytes = math.prod(shape) // kind.block * kind.bytes
        if offset % alignment:
            cursor.fail("the offset is not aligned", expected=f"a multiple of {alignment}", found=offset)
        if base + offset + nbytes > len(data):
            cursor.fail("the tensor reaches beyond the file", expected=f"at most {len(data)}", found=base + offset + nbytes)
        tensors[name] = TensorInfo(name, kind.name, shape, nbytes)
        places[name] = Place(base + offset, base + offset + nbytes, kind)
    _check_overlaps(places, path)
    return GgufIndex(metadata=metadata, tensors=tensors, places=places)


def _check_version(cursor: Cursor) -> None:
    cursor.field = "version"
    version = cursor.u32()
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        big = "a big-endian file" if swapped in VERSIONS else version
        cursor.fail("this GGUF version is not supported", expected=f"version {' or '.join(map(str, VERSIONS))}", found=big)


def _metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        cursor.field = "metadata"
        key = cursor.string()
        cursor.field = key
        if key in metadata:
            cursor.fail("the key is there twice")
        metadata[key] = cursor.value(cursor.u32())
    cursor.field = "tensor index"
    return metadata


def _alignment(metadata: Mapping[str, Any], cursor: Cursor) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        cursor.fail("general.alignment is no power of two", expected=f"1 to {MAX_ALIGNMENT}", found=value)
    return value


def _entry(cursor: Cursor) -> tuple[str, tuple[int, ...], GgmlType, int]:
    """One line of the tensor index; GGUF has the innermost dimension first, a header the outermost."""
    cursor.field = "tensor index"
    name = cursor.string()
    cursor.field = name
    if not name or "\0" in name:
        cursor.fail("not a usable tensor name", found=repr(name))
    dimensions = cursor.u32()
    if dimensions > MAX_DIMENSIONS:
        cursor.fail("too many dimensions", expected=f"at most {MAX_DIMENSIONS}", found=dimensions)
    shape = tuple(reversed([cursor.u64() for _ in range(dimensions)]))
    kind_id = cursor.u32()
    if kind_id not in GGML_TYPES:
        cursor.fail("unknown tensor type", expected="a GGML type id", found=kind_id)
    kind = GGML_TYPES[kind_id]
    if (shape[-1] if shape else 1) % kind.block:
        cursor.fail(f"a row is no whole number of {kind.name} blocks", expected=f"a multiple of {kind.block}", found=shape)
    return name, shape, kind, cursor.u64()


def _check_overlaps(places: Mapping[str, Place], path: Path) -> None:
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start < end:
            raise FormatError("the tensor overlaps another", path=path, field=name, expected=end, found=place.start)
        end = place.end

"""The tensor index of an `.apr` file: names, dtypes, shapes and extents, unpacked and checked."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from attrs import frozen

from apr_train.checkpoint.apr.layout import ALIGNMENT, MAX_DIMENSIONS, MAX_NAME_SIZE, TRAILER_SIZE, FixedHeader, aligned
from apr_train.checkpoint.dtypes import APR_DTYPES, APR_IDS, DType
from apr_train.errors import FormatError

_U16 = struct.Struct("<H")
_EXTENT = struct.Struct("<QQ")
_MAX_BYTES = 1 << 60
"""Bound on the product of the non-zero dimensions: what numpy can address, with room for eight-byte elements."""


@frozen
class IndexEntry:
    """One tensor: what it is, and where its bytes are."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    """Relative to the header's data offset; a multiple of 64."""
    size: int
    """Bytes, unpadded."""

    def pack(self) -> bytes:
        """The entry as it stands in the index."""
        name = self.name.encode()
        return b"".join(
            (
                _U16.pack(len(name)),
                name,
                bytes((APR_IDS[self.dtype.name], len(self.shape))),
                struct.pack(f"<{len(self.shape)}Q", *self.shape),
                _EXTENT.pack(self.offset, self.size),
            )
        )


class _Cursor:
    """Takes bytes off the front of the index and never runs past its end."""

    def __init__(self, raw: bytes, path: object) -> None:
        self.raw, self.position, self.path = raw, 0, path

    def take(self, count: int, field: str) -> bytes:
        end = self.position + count
        if end > len(self.raw):
            raise FormatError(
                "the tensor index is truncated",
                path=self.path,
                field=field,
                expected=f"{count} bytes",
                found=f"{len(self.raw) - self.position} bytes",
            )
        part = self.raw[self.position : end]
        self.position = end
        return part


def parse_index(raw: bytes, header: FixedHeader, file_size: int, path: object) -> dict[str, IndexEntry]:
    """Check and unpack the index; `raw` is everything between the index offset and the data offset.

    Raises:
        FormatError: at the first entry that is malformed, unsorted, twice there, overlapping another, or outside the file.
    """
    cursor = _Cursor(raw, path)
    entries: dict[str, IndexEntry] = {}
    previous = b""
    for number in range(header.tensor_count):
        entry, name = _parse_entry(cursor, number)
        if name <= previous:
            problem = "a tensor is in the index twice" if name == previous else "the tensor index is not sorted by name"
            raise FormatError(problem, path=path, field=f"tensor index entry {number}", found=repr(entry.name))
        entries[entry.name] = entry
        previous = name
    rest = raw[cursor.position :]
    if len(rest) >= ALIGNMENT or any(rest):
        raise FormatError(
            "the tensor index holds more than the header's tensor count",
            path=path,
            field="tensor count",
            expected="fewer than 64 zero bytes after the last entry",
            found=f"{len(rest)} bytes after entry {header.tensor_count}",
        )
    _check_layout(entries.values(), header, file_size, path)
    return entries


def _parse_entry(cursor: _Cursor, number: int) -> tuple[IndexEntry, bytes]:
    field = f"tensor index entry {number}"
    path = cursor.path
    (name_size,) = _U16.unpack(cursor.take(2, field))
    if not 0 < name_size <= MAX_NAME_SIZE:
        raise FormatError("bad name length", path=path, field=field, expected=f"1 to {MAX_NAME_SIZE}", found=name_size)
    raw_name = cursor.take(name_size, field)
    name = _name(raw_name, field, path)
    field = f"tensor {name}"
    dtype_id, dimensions = cursor.take(2, field)
    if dtype_id not in APR_DTYPES:
        raise FormatError("unknown dtype id", path=path, field=field, expected=f"one of {sorted(APR_DTYPES)}", found=dtype_id)
    if dimensions > MAX_DIMENSIONS:
        raise FormatError("too many dimensions", path=path, field=field, expected=f"at most {MAX_DIMENSIONS}", found=dimensions)
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, field))
    offset, size = _EXTENT.unpack(cursor.take(_EXTENT.size, field))
    entry = IndexEntry(name, APR_DTYPES[dtype_id], shape, offset, size)
    _check_size(entry, path)
    return entry, raw_name


def _name(raw: bytes, field: str, path: object) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError("a tensor name is not UTF-8", path=path, field=field, found=raw.hex()) from error
    if "\0" in name:
        raise FormatError("a tensor name holds a NUL", path=path, field=field, found=repr(name))
    return name


def _check_size(entry: IndexEntry, path: object) -> None:
    """The size that the index states is the one that dtype and shape ask for."""
    field = f"tensor {entry.name}"
    if math.prod(size or 1 for size in entry.shape) > _MAX_BYTES:
        raise FormatError("impossible shape", path=path, field=field, found=list(entry.shape))
    elements = math.prod(entry.shape)
    if not entry.dtype.fits(elements):
        problem = f"a {entry.dtype.name} tensor must be a whole number of blocks of {entry.dtype.block} elements"
        raise FormatError(problem, path=path, field=field, found=list(entry.shape))
    expected = entry.dtype.nbytes(elements)
    if expected != entry.size:
        problem = f"the size does not fit {entry.dtype.name} {list(entry.shape)}"
        raise FormatError(problem, path=path, field=field, expected=f"{expected} bytes", found=f"{entry.size} bytes")
    if entry.offset % ALIGNMENT:
        problem = "the tensor is not aligned"
        raise FormatError(problem, path=path, field=field, expected=f"a multiple of {ALIGNMENT}", found=entry.offset)


def _check_layout(entries: Iterable[IndexEntry], header: FixedHeader, file_size: int, path: object) -> None:
    """No tensors overlap, and the file ends exactly where the last one, its padding and the trailer do."""
    end = 0
    owner = ""
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.size)):
        if entry.offset < end and entry.size:
            raise FormatError("tensors overlap", path=path, field=f"tensor {entry.name}", found=f"overlap with {owner}")
        end, owner = max(end, entry.offset + entry.size), entry.name
    expected = header.data_offset + aligned(end) + TRAILER_SIZE
    if expected == file_size:
        return
    problem = "the file is truncated" if expected > file_size else "there are bytes after the end of the last tensor"
    raise FormatError(
        problem,
        path=path,
        field="file length",
        expected=f"{expected} bytes",
        found=f"{file_size} bytes",
        hint="Fetch or convert the file again.",
    )

"""The bytes of an `.apr` file around its metadata and data: header, tensor index, checksum; packed, unpacked and checked."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from enum import IntFlag

from attrs import frozen
from isal.isal_zlib import crc32, crc32_combine

from apr_train.checkpoint.dtypes import APR_DTYPES, APR_IDS, DType, addressable
from apr_train.errors import FormatError


class RegionChecksum:
    """The CRC32 of a whole file, put together from regions that arrive in any order, from several threads."""

    def __init__(self) -> None:
        self._regions: dict[int, tuple[int, int]] = {}
        self._contradicted = False

    def add(self, start: int, length: int, crc: int) -> None:
        """Account for `length` bytes at `start`; a region that comes twice must be the same both times."""
        known = self._regions.setdefault(start, (length, crc))
        if known != (length, crc):  # set, not combined with what it was: another thread may have set it in between
            self._contradicted = True

    def missing(self, total: int) -> Iterator[tuple[int, int]]:
        """The (start, length) of every stretch of the first `total` bytes that no region covers, in order.

        Raises:
            ValueError: when regions overlap without being the same: the caller cut one stretch in two ways.
        """
        position = 0
        for start, (length, _) in sorted(self._regions.items()):
            if start < position:
                raise ValueError(f"the regions at {start} and before overlap")
            if start > position:
                yield position, start - position
            position = start + length
        if position < total:
            yield position, total - position

    def combined(self) -> int | None:
        """The CRC32 of all regions in order; None if a region read twice differed, for then no value is right."""
        crc = 0
        for _, (length, part) in sorted(self._regions.items()):
            crc = crc32_combine(crc, part, length)
        return None if self._contradicted else crc


MAGIC = b"APR\0"
VERSION = (2, 0)
HEADER_SIZE = 64
TRAILER_SIZE = 4
ALIGNMENT = 64
MAX_METADATA_SIZE = 16 << 20
MAX_NAME_SIZE = 256
MAX_DIMENSIONS = 8
MIN_ENTRY_SIZE = 20
"""An index entry with an empty name and no dimension: name length, dtype, dimensions, offset, size."""


class Flags(IntFlag):
    """The header's feature bits."""

    LZ4 = 1 << 0
    ZSTD = 1 << 1
    ENCRYPTED = 1 << 2
    SIGNED = 1 << 3
    SHARDED = 1 << 4
    QUANTIZED = 1 << 5
    FILTERBANK = 1 << 6
    MODEL_CARD = 1 << 7
    STREAMING = 1 << 8
    VOCABULARY = 1 << 9
    ROW_MAJOR = 1 << 10
    COLUMN_MAJOR = 1 << 11


KNOWN_FLAGS = sum(Flags)


def aligned(size: int) -> int:
    """The next multiple of 64 that is not below `size`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def padding(size: int) -> bytes:
    """The zeros that follow `size` bytes up to the next multiple of 64."""
    return bytes(aligned(size) - size)


_FIELDS = struct.Struct("<4sBBHIQIQQ")
_CHECKSUM = struct.Struct("<I")
_RESERVED = bytes(20)

_OTHER_MAGIC = {
    b"APRN": "version 1 of the .apr container",
    b"APR1": "a draft of the .apr container that was never released (APR1)",
    b"APR2": "a draft of the .apr container that was never released (APR2)",
}
_REFUSED_FLAGS = {
    Flags.LZ4: ("its payload is compressed with LZ4", "Version 2.0 never defined the framing: write it uncompressed."),
    Flags.ZSTD: ("its payload is compressed with Zstandard", "Version 2.0 never defined the framing: write it uncompressed."),
    Flags.ENCRYPTED: ("it is encrypted (AES-256-GCM)", "Decrypt it with the tool that encrypted it."),
    Flags.COLUMN_MAJOR: (
        "its tensors are column-major: a GGUF import forgot to transpose them",
        "Import the GGUF again: apr-train import SRC.gguf -o X.apr.",
    ),
}


@frozen(kw_only=True)
class FixedHeader:
    """The numeric fields of the header."""

    flags: int
    tensor_count: int
    metadata_offset: int = HEADER_SIZE
    metadata_size: int
    index_offset: int
    data_offset: int

    def pack(self) -> bytes:
        """The 64 bytes, checksum included."""
        start = _FIELDS.pack(
            MAGIC,
            *VERSION,
            self.flags,
            self.tensor_count,
            self.metadata_offset,
            self.metadata_size,
            self.index_offset,
            self.data_offset,
        )
        return start + _CHECKSUM.pack(crc32(start + _RESERVED)) + _RESERVED


def parse_header(raw: bytes, file_size: int, path: object) -> FixedHeader:
    """Check and unpack the first 64 bytes of a file of `file_size` bytes.

    Raises:
        FormatError: not this container, another version, a bad checksum, a feature that cannot be read, or an offset
            outside the file.
    """
    _check_magic(raw, path)
    if len(raw) < HEADER_SIZE or file_size < HEADER_SIZE + TRAILER_SIZE:
        expected = f"at least {HEADER_SIZE + TRAILER_SIZE} bytes"
        raise FormatError("the file is truncated", path=path, field="header", expected=expected, found=f"{file_size} bytes")
    (stored,) = _CHECKSUM.unpack_from(raw, _FIELDS.size)
    actual = crc32(raw[: _FIELDS.size] + raw[_FIELDS.size + 4 : HEADER_SIZE])
    if stored != actual:
        raise FormatError(
            "the header is damaged",
            path=path,
            field="header checksum",
            expected=f"{actual:#010x}",
            found=f"{stored:#010x}",
            hint="Fetch or convert the file again.",
        )
    _, major, minor, flags, count, metadata_offset, metadata_size, index_offset, data_offset = _FIELDS.unpack_from(raw)
    _check_version((major, minor), raw, path)
    _check_flags(flags, path)
    header = FixedHeader(
        flags=flags,
        tensor_count=count,
        metadata_offset=metadata_offset,
        metadata_size=metadata_size,
        index_offset=index_offset,
        data_offset=data_offset,
    )
    _check_extents(header, file_size, path)
    return header


def _check_magic(raw: bytes, path: object) -> None:
    magic = raw[:4]
    if magic in _OTHER_MAGIC:
        raise FormatError(
            f"this is {_OTHER_MAGIC[magic]}",
            path=path,
            field="magic",
            expected=f"version 2 ({MAGIC!r})",
            found=repr(magic),
            hint="Re-convert it with `apr convert` of aprender.",
        )
    if magic != MAGIC:
        found = repr(magic) if magic else "an empty file"
        raise FormatError("not an .apr file", path=path, field="magic", expected=repr(MAGIC), found=found)


def _check_version(version: tuple[int, int], raw: bytes, path: object) -> None:
    if version != VERSION:
        raise FormatError(
            "a version that is not known here",
            path=path,
            field="version",
            expected=f"{VERSION[0]}.{VERSION[1]}",
            found=f"{version[0]}.{version[1]}",
            hint="Re-convert it with `apr convert` of aprender.",
        )
    if raw[44:HEADER_SIZE] != _RESERVED:
        raise FormatError(
            "reserved bytes are not zero", path=path, field="reserved", expected="20 zeros", found=raw[44:64].hex()
        )


def _check_flags(flags: int, path: object) -> None:
    for flag, (problem, hint) in _REFUSED_FLAGS.items():
        if flags & flag:
            raise FormatError(
                f"this file cannot be read: {problem}", path=path, field="flags", found=f"{flags:#06x}", hint=hint
            )
    if flags & ~KNOWN_FLAGS:
        raise FormatError(
            "flags that are not known here",
            path=path,
            field="flags",
            expected=f"bits of {KNOWN_FLAGS:#06x}",
            found=f"{flags:#06x}",
        )


def _check_extents(header: FixedHeader, file_size: int, path: object) -> None:
    """Sections in order, inside the file, aligned; the tensor count bounded by the bytes that can hold entries."""
    metadata_end = header.metadata_offset + header.metadata_size
    checks = [
        ("metadata offset", header.metadata_offset, HEADER_SIZE, file_size),
        ("metadata size", header.metadata_size, 0, MAX_METADATA_SIZE),
        ("tensor index offset", header.index_offset, metadata_end, file_size),
        ("data offset", header.data_offset, header.index_offset, file_size - TRAILER_SIZE),
        ("tensor count", header.tensor_count, 0, (header.data_offset - header.index_offset) // MIN_ENTRY_SIZE),
    ]
    for field, value, low, high in checks:
        if not low <= value <= high:
            raise FormatError("out of range", path=path, field=field, expected=f"{low} to {high}", found=value)
    for field, value in (("tensor index offset", header.index_offset), ("data offset", header.data_offset)):
        if value % ALIGNMENT:
            raise FormatError("not aligned", path=path, field=field, expected=f"a multiple of {ALIGNMENT}", found=value)


_U16 = struct.Struct("<H")
_EXTENT = struct.Struct("<QQ")


TIED_HEADS = frozenset({"lm_head.weight", "output.weight"})
"""The tensors that may stand in the index with their full shape and no bytes: an output head that is declared tied."""


def is_placeholder(name: str, dtype: str, shape: tuple[int, ...], size: int) -> bool:
    """Whether an entry declares a tied output head instead of holding one; the reference writer spells every tie so."""
    return size == 0 and name in TIED_HEADS and dtype == "F32" and math.prod(shape) > 0


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

    @property
    def is_placeholder(self) -> bool:
        """Whether this is an output head that is only declared."""
        return is_placeholder(self.name, self.dtype.name, self.shape, self.size)

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
    if not addressable(entry.shape):
        raise FormatError("impossible shape", path=path, field=field, found=list(entry.shape))
    elements = math.prod(entry.shape)
    if not entry.dtype.fits(elements):
        problem = f"a {entry.dtype.name} tensor must be a whole number of blocks of {entry.dtype.block} elements"
        raise FormatError(problem, path=path, field=field, found=list(entry.shape))
    expected = entry.dtype.nbytes(elements)
    if expected != entry.size and not entry.is_placeholder:
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

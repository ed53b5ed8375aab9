"""The `.apr` header: its 64 bytes packed, unpacked and checked against the length of the file, and the format's constants."""

from __future__ import annotations

import struct
from enum import IntFlag

from attrs import frozen

from apr_train.checkpoint.apr.checksum import crc32
from apr_train.errors import FormatError

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

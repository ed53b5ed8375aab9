"""Constants of the container: magic numbers, flags, limits, alignment."""

from __future__ import annotations

from enum import IntFlag

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

UNDO = ".undo"
"""Ending of the file beside an `.apr` that holds what was there before its metadata was replaced in place."""


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

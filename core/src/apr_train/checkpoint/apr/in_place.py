"""Put other metadata into an `.apr` file without touching a tensor's bytes, so that no crash goes unnoticed or unmended.

Three places change: header, metadata, trailing checksum. No file system writes three places as one, so:

1. the old bytes of all three are written beside the file (`X.apr.undo`), and synced;
2. the header's checksum is made wrong and synced: from here on every reader refuses the file;
3. metadata and trailing checksum are written, and synced;
4. the new header is written and synced: the file is whole again;
5. the undo file is removed.

A crash leaves the old file, the new file, or one that every reader refuses beside its undo file; `recover` puts that back.
The trailing checksum is not computed anew but moved by the change, so damage to the data that was there stays visible.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import attrs
from isal.isal_zlib import crc32, crc32_combine

from apr_train.atomic import write_file
from apr_train.checkpoint.apr.layout import HEADER_SIZE, TRAILER_SIZE, UNDO, aligned, padding, parse_header
from apr_train.checkpoint.apr.metadata import encode_metadata
from apr_train.checkpoint.apr.reader import AprReader
from apr_train.errors import FormatError, OutputError

_UNDO_MAGIC = b"APRUNDO1"
_UNDO_HEAD = struct.Struct("<8sQQI")
"""Magic, size of the file, size of its front, its trailing checksum; the front and a CRC32 of it all follow."""
_CHECKSUM_AT = 40


def undo_path(path: str | os.PathLike[str]) -> Path:
    """Where the old bytes lie while metadata is replaced in place."""
    real = Path(os.path.realpath(path))
    return real.with_name(real.name + UNDO)


def fits_in_place(source: AprReader, metadata: Mapping[str, Any]) -> bool:
    """Whether the padded metadata takes exactly the room of the old, so that the result is what a fresh write would be.

    A file with several names (hard links) does not count: the others are not ours to change.
    """
    size = aligned(len(encode_metadata(metadata, source.header.path)))
    fixed = source.fixed
    one_name = Path(source.header.path).stat().st_nlink == 1
    return one_name and fixed.metadata_offset == HEADER_SIZE and fixed.index_offset == HEADER_SIZE + size


def rewrite_in_place(source: AprReader, metadata: Mapping[str, Any]) -> None:
    """Replace the metadata of a file for which `fits_in_place` holds.

    Raises:
        FormatError: the metadata cannot be written.
        OutputError: the file cannot be written, or another process does it right now.
    """
    path = Path(os.path.realpath(source.header.path))
    front = _front(source, metadata)
    with _writable(path) as file:
        old = os.pread(file.fileno(), len(front), 0)
        size = os.fstat(file.fileno()).st_size
        trailer = os.pread(file.fileno(), TRAILER_SIZE, size - TRAILER_SIZE)
        _write_undo(path, old, size, trailer)
        _exchange(file, front, size, _moved(trailer, old, front, size - TRAILER_SIZE - len(front)))
    _remove(undo_path(path))


def recover(path: str | os.PathLike[str]) -> bool:
    """Put back what an interrupted `rewrite_in_place` left; False when there is nothing to put back.

    Raises:
        FormatError: the undo file does not belong to this file.
        OutputError: the file cannot be written, or another process does it right now.
    """
    undo = undo_path(path)
    if not undo.exists():
        return False
    with _writable(Path(os.path.realpath(path))) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            parse_header(os.pread(file.fileno(), HEADER_SIZE, 0), size, path)
        except FormatError:
            front, trailer = _read_undo(undo, size)
            _exchange(file, front, size, trailer)
            _remove(undo)
            return True
    _remove(undo)  # the file is whole: not begun, completed, or replaced since
    return False


def _front(source: AprReader, metadata: Mapping[str, Any]) -> bytes:
    encoded = encode_metadata(metadata, source.header.path)
    header = attrs.evolve(source.fixed, metadata_size=len(encoded))
    return header.pack() + encoded + padding(len(encoded))


def _moved(trailer: bytes, old: bytes, new: bytes, rest: int) -> bytes:
    """The checksum of a file after its front has changed; CRC32 is linear, so the bytes behind it are not needed."""
    value = int.from_bytes(trailer, "little")
    for front in (old, new):
        value ^= crc32_combine(crc32(front), 0, rest)
    return value.to_bytes(TRAILER_SIZE, "little")


def _exchange(file: BinaryIO, front: bytes, size: int, trailer: bytes) -> None:
    descriptor = file.fileno()
    header = bytearray(front[:HEADER_SIZE])
    header[_CHECKSUM_AT] ^= 0xFF
    try:
        for steps in (
            [(0, bytes(header))],
            [(HEADER_SIZE, front[HEADER_SIZE:]), (size - TRAILER_SIZE, trailer)],
            [(0, front[:HEADER_SIZE])],
        ):
            for offset, data in steps:
                _put(descriptor, data, offset)
            os.fsync(descriptor)
    except OSError as error:
        hint = "Run apr-train stamp again: it first puts the old bytes back."
        raise OutputError(f"cannot be written ({error.strerror})", where=file.name, hint=hint) from error


def _put(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _writable(path: Path) -> BinaryIO:
    """The file, open for writing in place and locked until it is closed."""
    try:
        file = path.open("r+b", buffering=0)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", where=path, hint="Check its permissions.") from error
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        problem = "another process is writing it" if error.errno == errno.EWOULDBLOCK else "cannot be locked"
        raise OutputError(problem, where=path) from error
    return file


def _write_undo(path: Path, front: bytes, size: int, trailer: bytes) -> None:
    content = _UNDO_HEAD.pack(_UNDO_MAGIC, size, len(front), int.from_bytes(trailer, "little")) + front
    write_file(undo_path(path), content + crc32(content).to_bytes(4, "little"))


def _read_undo(undo: Path, size: int) -> tuple[bytes, bytes]:
    raw = undo.read_bytes()
    content, checksum = raw[:-4], int.from_bytes(raw[-4:], "little")
    if len(content) < _UNDO_HEAD.size or crc32(content) != checksum:
        raise FormatError("the undo file is damaged", path=undo, hint="Fetch or convert the .apr file again.")
    magic, of_size, front_size, trailer = _UNDO_HEAD.unpack_from(content)
    front = content[_UNDO_HEAD.size :]
    if magic != _UNDO_MAGIC or of_size != size or len(front) != front_size:
        found = f"a file of {size} bytes"
        raise FormatError("the undo file is not this file's", path=undo, expected=f"one of {of_size} bytes", found=found)
    return front, trailer.to_bytes(TRAILER_SIZE, "little")


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

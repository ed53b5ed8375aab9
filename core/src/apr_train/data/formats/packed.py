"""Files as streams of what is in them: plain ones as they stand, gzip and zstd unpacked while they are read.

The unpackers are fed `_FED` bytes at a time, which bounds what comes out of one call (zstd: 128 kB for every 4 bytes).
All members of a gzip and all frames of a zstd are read; what breaks off, and a checksum that is wrong, is an error.
"""

from __future__ import annotations

import io
import os
import shlex
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import zstandard
from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.files import open_regular
from apr_train.data.formats.bounds import LARGEST_PACKED_TEXT, Allowance
from apr_train.errors import DataError, FormatError

_FED = 1 << 11
READ_AHEAD = 1 << 20
"""Bytes of a file that are read at once."""
_LONGEST_MAGIC = 4
LARGEST_WINDOW = 1 << 27
"""Bytes that zstd may have to look back; what `zstd` itself takes without `--long`."""


class _Unpacker(Protocol):
    """One member or frame, as zlib and zstandard unpack it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


@frozen
class Packing:
    """A way to pack one file."""

    name: str
    """What a file is, as after `it is`."""
    suffixes: tuple[str, ...]
    unpack: str
    """A command that unpacks one; `{path}` is the file."""
    begin: Callable[[], _Unpacker]
    padding: bytes
    """What may stand behind a member and means nothing."""

    def command(self, path: Path) -> str:
        """The command that unpacks this file."""
        return self.unpack.replace("{path}", shlex.quote(str(path)))


def _begin_gzip() -> _Unpacker:
    return zlib.decompressobj(wbits=31)


def _begin_zstd() -> _Unpacker:
    return zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()


GZIP = Packing("gzip-compressed", (".gz", ".gzip"), "gzip -dk {path}", _begin_gzip, b"\0")
ZSTD = Packing("zstd-compressed", (".zst", ".zstd"), "zstd -dk --long=31 {path}", _begin_zstd, b"")
PACKINGS = (GZIP, ZSTD)


def packing_of(path: Path, head: bytes) -> Packing | None:
    """How a file is packed, by its first bytes; by its name where it breaks off before it can be told."""
    if head[:2] == b"\x1f\x8b":
        return GZIP
    skippable = head[1:4] == b"*M\x18" and 0x50 <= head[0] <= 0x5F
    if head[:4] == b"\x28\xb5\x2f\xfd" or skippable:
        return ZSTD
    named = next((packing for packing in PACKINGS if path.suffix.lower() in packing.suffixes), None)
    return named if len(head) < _LONGEST_MAGIC else None


def unpacked_name(path: Path) -> Path:
    """The name of what is in a file: without the suffix of a packing."""
    packed = any(path.suffix.lower() in packing.suffixes for packing in PACKINGS)
    return path.with_suffix("") if packed and path.stem else path


def unwatched(count: int) -> None:
    """Nobody asked how much has been read."""


@contextmanager
def opened(path: Path, done: Callable[[int], None] = unwatched) -> Iterator[io.BufferedReader]:
    """What is in a file, as a stream; `done` is told of the bytes of the file that are read.

    Raises:
        DataError: when it cannot be read, breaks off, is damaged, or unpacks to more than `bounds` allows.
    """
    try:
        with open_data(path) as whole:
            file = cast(io.FileIO, whole.raw)
            head = file.read(_LONGEST_MAGIC)
            file.seek(0)
            packing = packing_of(path, head)
            raw = _Plain(file, done) if packing is None else _Unpacked(_members(path, file, packing, done))
            yield io.BufferedReader(raw, READ_AHEAD)
    except OSError as error:
        raise unreadable(error, path) from error


def open_data(path: Path) -> io.BufferedReader:
    """Open a file of a corpus, which is a file: no pipe, no device.

    Raises:
        DataError: when it cannot be opened, or is of another kind.
    """
    try:
        return open_regular(path)
    except FormatError as error:
        if isinstance(error.__cause__, OSError):
            raise unreadable(error.__cause__, path) from error
        found = error.finding
        raise DataError(
            found.problem, where=path, rule=rules.PREFLIGHT_025, expected=found.expected, found=found.found
        ) from error


def unreadable(error: OSError, path: Path | None = None) -> DataError:
    """The error about a file that the system does not let be read; `path` where its own error may not name it."""
    where = error.filename if path is None else path
    return DataError("cannot be read", where=where, rule=rules.PREFLIGHT_025, found=error.strerror)


def read_whole(path: Path, file: io.BufferedReader) -> bytes | bytearray:
    """All that is in a file as one text.

    Raises:
        DataError: for a packed text of more than `LARGEST_PACKED_TEXT`, before that much is in memory.
    """
    if not isinstance(file.raw, _Unpacked):
        return file.read()
    whole = bytearray()
    while more := file.read(READ_AHEAD):
        whole += more
        if len(whole) > LARGEST_PACKED_TEXT:
            raise DataError(
                "a packed text that is too long",
                where=path,
                rule=rules.PREFLIGHT_025,
                expected=f"at most {LARGEST_PACKED_TEXT:,} bytes",
                found="more",
                hint="It is one document. Unpack and split it, such as with split -C 1G.",
            )
    return whole


class _Plain(io.RawIOBase):
    """A file as it stands, which tells what of it was read."""

    def __init__(self, file: io.FileIO, done: Callable[[int], None]) -> None:
        self._file, self._done = file, done

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # a memoryview is what comes
        count = self._file.readinto(buffer) or 0
        self._done(count)
        return count

    def readall(self) -> bytes:
        """The rest in one call, which knows its size: no second copy."""
        rest = self._file.readall() or b""
        self._done(len(rest))
        return rest


class _Unpacked(io.RawIOBase):
    """What comes out of a packed file, part by part."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._part = parts, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # a memoryview is what comes
        while not self._part:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._part = memoryview(part)
        count = min(len(buffer), len(self._part))
        buffer[:count] = self._part[:count]
        self._part = self._part[count:]
        return count


def _members(path: Path, file: io.FileIO, packing: Packing, done: Callable[[int], None]) -> Iterator[bytes]:
    """What is in every member, one after the other.

    Raises:
        DataError: naming the file, for what is damaged, breaks off, or unpacks to too much.
    """
    size = os.fstat(file.fileno()).st_size
    allowance = Allowance(path, size, f"If you trust it, unpack it: {packing.command(path)}")
    member: _Unpacker | None = None
    for chunk in _chunks(file, done):
        rest = chunk
        while rest:
            if member is None and not (rest := rest.lstrip(packing.padding) if packing.padding else rest):
                break
            member = member or packing.begin()
            part = _fed(path, packing, member, rest)
            allowance.spend(len(part))
            yield part
            rest, member = (member.unused_data, None) if member.eof else (b"", member)
    if member is not None or not size:
        raise _damaged(path, packing, "it breaks off")


def _chunks(file: io.FileIO, done: Callable[[int], None]) -> Iterator[bytes]:
    while block := file.read(READ_AHEAD):
        done(len(block))
        yield from (block[begin : begin + _FED] for begin in range(0, len(block), _FED))


def _fed(path: Path, packing: Packing, member: _Unpacker, data: bytes) -> bytes:
    try:
        return member.decompress(data)
    except (zlib.error, zstandard.ZstdError) as error:
        raise _damaged(path, packing, str(error)) from error
    except MemoryError as error:
        raise _damaged(path, packing, "it asks for more memory than there is") from error


def _damaged(path: Path, packing: Packing, found: str) -> DataError:
    return DataError(
        "a damaged archive",
        where=path,
        rule=rules.PREFLIGHT_025,
        expected=f"a file that is {packing.name}, whole",
        found=found,
        hint=f"Make or download it again, or leave it out; {packing.command(path)} says what is left of it.",
    )

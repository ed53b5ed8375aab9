"""One pass over a file's tensors in any order, with the checksum computed on the bytes while they are in cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from apr_train.errors import FormatError
from apr_train.formats.apr.checksum import RegionChecksum, crc32
from apr_train.formats.apr.file import InputFile
from apr_train.formats.apr.header import FixedHeader
from apr_train.formats.apr.index import IndexEntry
from apr_train.formats.apr.layout import TRAILER_SIZE

CHUNK = 1 << 20
"""Bytes read at a time: they stay in the second-level cache until the checksum and the copy have seen them."""


class AprStream:
    """Tensor bytes by `pread`; leaving the context reads the rest and raises if the trailing CRC32 does not match.

    Nothing that was read may be used before the context has been left.
    """

    def __init__(self, file: InputFile, header: FixedHeader, entries: Mapping[str, IndexEntry], *, verify: bool) -> None:
        self._file, self._header, self._entries, self._verify = file, header, entries, verify
        self._checksum = RegionChecksum()

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill a writable buffer of exactly the tensor's stored size; other threads may read other tensors."""
        entry = self._entries[name]
        if buffer.nbytes != entry.size:
            raise ValueError(f"the buffer for {name} has {buffer.nbytes} bytes, the tensor {entry.size}")
        self._fill(self._header.data_offset + entry.offset, buffer.cast("B"))

    def chunks(self, name: str, *, skip: int = 0, multiple: int = 1) -> Iterator[memoryview]:
        """The tensor's bytes in pieces of a multiple of `multiple`, after `skip`; each is valid until the next."""
        entry = self._entries[name]
        start = self._header.data_offset + entry.offset
        buffer = memoryview(bytearray(min(max(CHUNK // multiple, 1) * multiple, entry.size)))
        if skip:
            yield self._piece(start, buffer[: min(skip, entry.size)])
        for position in range(skip, entry.size, len(buffer) or 1):
            yield self._piece(start + position, buffer[: min(len(buffer), entry.size - position)])

    def _piece(self, start: int, buffer: memoryview) -> memoryview:
        self._fill(start, buffer)
        return buffer

    def _fill(self, start: int, buffer: memoryview) -> None:
        crc = 0
        for position in range(0, len(buffer), CHUNK):
            part = buffer[position : position + CHUNK]
            self._file.read_into(start + position, part)
            if self._verify:
                crc = crc32(part, crc)
        if self._verify and len(buffer):
            self._checksum.add(start, len(buffer), crc)

    def finish(self) -> None:
        """Read what was not read yet and compare with the trailer.

        Raises:
            FormatError: the file is damaged, or changed under our hands.
        """
        if not self._verify:
            return
        total = self._file.size - TRAILER_SIZE
        buffer = memoryview(bytearray(min(CHUNK, total)))
        for start, length in list(self._checksum.missing(total)):
            for position in range(0, length, CHUNK):
                part = buffer[: min(CHUNK, length - position)]
                self._file.read_into(start + position, part)
                self._checksum.add(start + position, len(part), crc32(part))
        stored = int.from_bytes(self._file.read(total, TRAILER_SIZE), "little")
        actual = self._checksum.combined()
        if actual != stored:
            raise FormatError(
                "the file is damaged",
                path=self._file.path,
                field="checksum",
                expected=f"{stored:#010x}",
                found="different bytes on two reads" if actual is None else f"{actual:#010x}",
                hint="Fetch or convert the file again; --no-verify reads it regardless.",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()

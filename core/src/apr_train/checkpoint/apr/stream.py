"""One pass over a file's tensors in any order, with the checksum computed on the bytes while they are in cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

import numpy as np

from apr_train.checkpoint.apr.checksum import RegionChecksum, crc32
from apr_train.checkpoint.apr.fixed_header import FixedHeader
from apr_train.checkpoint.apr.index import IndexEntry
from apr_train.checkpoint.apr.layout import TRAILER_SIZE
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.checkpoint.dtypes import NUMPY_DTYPES, elements_of
from apr_train.checkpoint.files import InputFile
from apr_train.checkpoint.quantization import decode
from apr_train.errors import FormatError

Progress = Callable[[int], None]
"""Called with the number of bytes that were just read."""
CHUNK = 1 << 18
"""Bytes read at a time: they stay in the second-level cache until the checksum and the copy have seen them."""


class AprStream:
    """Tensor bytes by `pread`; leaving the context reads the rest and raises if the trailing CRC32 does not match.

    Nothing that was read may be used before the context has been left. A tensor may be read twice in one pass.
    """

    def __init__(self, file: InputFile, header: FixedHeader, entries: Mapping[str, IndexEntry], *, verify: bool) -> None:
        self._file, self._header, self._entries, self._verify = file, header, entries, verify
        self._checksum = RegionChecksum()

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill a writable buffer of exactly the tensor's stored size."""
        entry = self._entries[name]
        if buffer.nbytes != entry.size:
            raise ValueError(f"the buffer for {name} has {buffer.nbytes} bytes, the tensor {entry.size}")
        whole = buffer.cast("B")
        for position, length in _cuts(entry):
            self._fill(entry, position, whole[position : position + length])

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The tensor's bytes in order, in pieces of whole blocks; each is valid until the next."""
        entry = self._entries[name]
        cuts = list(_cuts(entry))
        buffer = memoryview(bytearray(max((length for _, length in cuts), default=0)))
        for position, length in cuts:
            piece = buffer[:length]
            self._fill(entry, position, piece)
            yield piece

    def values(self, name: str) -> Iterator[TensorView]:
        """The tensor's elements in order, flat, a piece at a time, decoded to float32 if block-quantised."""
        entry = self._entries[name]
        dtype, left = entry.dtype, elements_of(entry.shape)
        pieces = self.chunks(name)
        prefix = bytes(next(pieces, b"")) if dtype.prefix else b""
        for piece in pieces:
            if dtype.quantized:
                view = TensorView("F32", decode(dtype, memoryview(prefix + piece) if prefix else piece, left))
            else:
                view = TensorView(dtype.name, np.frombuffer(piece, NUMPY_DTYPES[dtype.name]))
            left -= view.data.size
            yield view

    def _fill(self, entry: IndexEntry, position: int, buffer: memoryview) -> None:
        start = self._header.data_offset + entry.offset + position
        self._file.read_into(start, buffer)
        if self._verify:
            self._checksum.add(start, len(buffer), crc32(buffer))

    def finish(self, progress: Progress | None = None) -> None:
        """Read what was not read yet, telling `progress` of its bytes, and compare with the trailer.

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
                if progress is not None:
                    progress(len(part))
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


def _cuts(entry: IndexEntry) -> Iterator[tuple[int, int]]:
    """The (position, length) of the pieces in which a tensor is always read: its prefix, then whole blocks."""
    dtype = entry.dtype
    if dtype.prefix and entry.size:
        yield 0, dtype.prefix
    step = max(CHUNK // dtype.block_bytes, 1) * dtype.block_bytes
    for position in range(dtype.prefix, entry.size, step):
        yield position, min(step, entry.size - position)

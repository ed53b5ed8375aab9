"""The reader of one `.apr` file: structure checked when it is opened, tensors mapped or streamed with the checksum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
from isal.isal_zlib import crc32

from apr_train import rules
from apr_train.checkpoint.apr.layout import (
    HEADER_SIZE,
    TRAILER_SIZE,
    FixedHeader,
    Flags,
    IndexEntry,
    RegionChecksum,
    parse_header,
    parse_index,
)
from apr_train.checkpoint.apr.metadata import header_from_apr, parse_metadata
from apr_train.checkpoint.apr.tensors import check_tied_head
from apr_train.checkpoint.checkpoint import Progress, TensorView, content_hash
from apr_train.checkpoint.companions import files_beside
from apr_train.checkpoint.dtypes import plain_view
from apr_train.checkpoint.files import InputFile
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.quantization import dequantize
from apr_train.errors import Finding, FormatError

CHUNK = 1 << 18
"""Bytes read at a time: they stay in the second-level cache until the checksum and the copy have seen them."""
_CUTS = 16
"""Of a tensor's pieces so many are one thread's: enough to outweigh handing them over, few enough to keep all threads busy."""


class AprStream:
    """Tensor bytes by `pread`; leaving the context reads the rest and raises if the trailing CRC32 does not match.

    Nothing that was read may be used before the context has been left. A tensor may be read twice in one pass.
    """

    def __init__(self, file: InputFile, header: FixedHeader, entries: Mapping[str, IndexEntry], *, verify: bool) -> None:
        self._file, self._header, self._entries, self._verify = file, header, entries, verify
        self._checksum = RegionChecksum()

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill a writable buffer of exactly the tensor's stored size."""
        for part in self.parts(name, buffer):
            part()

    def parts(self, name: str, buffer: memoryview) -> Iterator[Callable[[], int]]:
        """`read_into` in calls of a few MiB, which threads may make in any order; each returns its bytes."""
        entry = self._entries[name]
        if buffer.nbytes != entry.size:
            raise ValueError(f"the buffer for {name} has {buffer.nbytes} bytes, the tensor {entry.size}")
        cuts, whole = list(_cuts(entry)), buffer.cast("B")
        for first in range(0, len(cuts), _CUTS):
            yield partial(self._fill_cuts, entry, cuts[first : first + _CUTS], whole)

    def _fill_cuts(self, entry: IndexEntry, cuts: Sequence[tuple[int, int]], whole: memoryview) -> int:
        for position, length in cuts:
            self._fill(entry, position, whole[position : position + length])
        return sum(length for _, length in cuts)

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
        dtype, left = entry.dtype, math.prod(entry.shape)
        pieces = self.chunks(name)
        prefix = bytes(next(pieces, b"")) if dtype.prefix else b""
        for piece in pieces:
            if dtype.quantized:
                raw = memoryview(prefix + piece) if prefix else piece
                view = TensorView("F32", dequantize(dtype, raw, left, path=self._file.path, name=name))
            else:
                view = plain_view(dtype.name, (-1,), piece)
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
                hint="Fetch or convert the file again; commands that have --no-verify read it regardless.",
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


class AprReader:
    """One open `.apr` file, made by `open_apr`; implements `apr_train.checkpoint.checkpoint.Checkpoint`.

    With `verify` (the default) no tensor data is handed out before the file's trailing CRC32 was found right: the first
    `read` checks it once, `stream` checks it as it goes.
    """

    header: Header
    raw_metadata: Mapping[str, Any]
    """As it stands in the file, without nulls."""
    flags: Flags
    entries: Mapping[str, IndexEntry]
    verify_data: bool

    def __init__(self, file: InputFile, *, verify: bool) -> None:
        self._file = file
        self.verify_data = verify
        self._verified = False
        self._fixed = fixed = parse_header(file.read(0, min(HEADER_SIZE, file.size)), file.size, file.path)
        self.flags = Flags(fixed.flags)
        self.raw_metadata = parse_metadata(file.read(fixed.metadata_offset, fixed.metadata_size), file.path)
        index = file.read(fixed.index_offset, fixed.data_offset - fixed.index_offset)
        self.entries = parse_index(index, fixed, file.size, file.path)
        tensors = tensor_infos(self.entries)
        if not self.flags & Flags.SHARDED:
            check_tied_head(file.path, tensors)
        header = header_from_apr(str(file.path), self.raw_metadata, tensors)
        self.header = attrs.evolve(header, findings=(*self._signature_notes(), *header.findings))

    def _signature_notes(self) -> list[Finding]:
        if not self.flags & Flags.SIGNED:
            return []
        problem = "the file is signed, and the signature was not checked"
        return [Finding(rule=rules.APR_SIGNATURE, subject=str(self._file.path), problem=problem, severity="warning")]

    @classmethod
    def over(cls, file: InputFile, *, verify: bool) -> AprReader:
        """Check the structure of an open file, a whole model or one shard; `verify=False` skips the checksum over the data.

        Raises:
            FormatError: whatever is wrong with the file, which is then closed.
        """
        try:
            return cls(file, verify=verify)
        except BaseException:
            file.close()
            raise

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and what lies beside it by its name."""
        return files_beside(self._file.path.parent, [self._file.path])

    @property
    def identity(self) -> tuple[int, ...]:
        """Which file it is, by device, inode, size and time of the last change."""
        return self._file.identity

    def stream(self, *, verify: bool | None = None) -> AprStream:
        """A context that reads tensors in any order and checks the checksum of the same bytes when it is left."""
        return AprStream(self._file, self._fixed, self.entries, verify=self.verify_data if verify is None else verify)

    def verify(self, progress: Progress | None = None) -> None:
        """Check the trailing CRC32 over the whole file.

        Raises:
            FormatError: the file is damaged.
        """
        self.stream(verify=True).finish(progress)
        self._verified = True

    def read(self, name: str) -> TensorView:
        """The tensor as a view of the memory map, or decoded to float32 if it is block-quantised."""
        shape, entry = self.header.tensors[name].shape, self.entries[name]
        raw = self.read_raw(name)
        if not entry.dtype.quantized:
            return plain_view(entry.dtype.name, shape, raw)
        floats = dequantize(entry.dtype, raw, math.prod(shape), path=self.header.path, name=name)
        return TensorView("F32", floats.reshape(shape))

    def read_raw(self, name: str) -> memoryview:
        """The tensor's bytes as a view of the memory map."""
        entry = self.entries[name]
        self.verify_once()
        return self._file.view(self._fixed.data_offset + entry.offset, entry.size)

    def content_hash(self) -> str:
        """SHA-256 over metadata, names, dtypes, shapes and tensor bytes: the same model has the same hash."""
        return content_hash(self.raw_metadata, self.header.tensors, self.read_raw)

    def verify_once(self, progress: Progress | None = None) -> None:
        """`verify`, unless that was done before or the file was opened without."""
        if self.verify_data and not self._verified:
            self.verify(progress)

    def count_as_verified(self) -> None:
        """Believe another process, which has verified the same file."""
        self._verified = True

    def close(self) -> None:
        """Let go of the file; views that are still held keep the map alive."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def tensor_infos(entries: Mapping[str, IndexEntry]) -> dict[str, TensorInfo]:
    """The index in the vocabulary of every container."""
    return {name: TensorInfo(name, entry.dtype.name, entry.shape, entry.size) for name, entry in entries.items()}

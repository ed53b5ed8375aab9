"""The writer of an `.apr` file, tensor by tensor: the layout is known up front, so peak memory is at most one tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from attrs import frozen
from isal.isal_zlib import crc32

from apr_train.atomic import replace_file
from apr_train.checkpoint.apr.layout import (
    HEADER_SIZE,
    MAX_DIMENSIONS,
    MAX_NAME_SIZE,
    TIED_HEADS,
    FixedHeader,
    Flags,
    IndexEntry,
    RegionChecksum,
    aligned,
    is_placeholder,
    padding,
)
from apr_train.checkpoint.apr.metadata import encode_metadata
from apr_train.checkpoint.apr.reader import AprReader
from apr_train.checkpoint.checkpoint import Progress
from apr_train.checkpoint.dtypes import APR_IDS, DTYPES, bytes_of
from apr_train.checkpoint.tokenizer_metadata import VOCABULARY
from apr_train.errors import FormatError, OutputError

Data = np.ndarray[Any, Any] | memoryview | bytes | bytearray


@frozen
class TensorSpec:
    """A tensor that is going to be written: everything but its data."""

    name: str
    dtype: str
    """One of the names in `dtypes.APR_IDS`."""
    shape: tuple[int, ...]
    placeholder: bool = False
    """Whether it is written without data: the reference writer's way to declare a tied output head."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file, unpadded."""
        return 0 if self.placeholder else DTYPES[self.dtype].nbytes(math.prod(self.shape))


class AprWriter:
    """A context that writes one file; entering lays it out, `write` fills it, leaving completes and renames it.

    Data lies in the order of `tensors` sorted by name, as the reference writer has it, or in the order given with
    `keep_order` (its streaming writer's). `write` may be called in any order.

    Raises:
        FormatError: for metadata, names, dtypes or shapes that the format cannot hold.
        OutputError: when the file cannot be written, or a tensor is missing at the end. An old file is then as it was.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, Any],
        tensors: Iterable[TensorSpec],
        *,
        flags: int = 0,
        keep_order: bool = False,
    ) -> None:
        self.path = path
        specs = list(tensors) if keep_order else sorted(tensors, key=lambda spec: spec.name.encode(errors="replace"))
        self._entries = _lay_out(specs, path)
        flags |= Flags.ROW_MAJOR | (Flags.VOCABULARY if metadata.get(VOCABULARY) else 0)
        self._front = _front(encode_metadata(metadata, path), list(self._entries.values()), flags)
        self._end = len(self._front) + max((entry.offset + aligned(entry.size) for entry in self._entries.values()), default=0)
        self._checksum = RegionChecksum()
        self._open: AbstractContextManager[BinaryIO] = replace_file(path)
        self._written: set[str] = set()

    def write(self, name: str, data: Data | Iterable[Data]) -> None:
        """Write one tensor: its bytes or an array of them, whole or as an iterable of pieces in order.

        Raises:
            OutputError: a name that was not declared or is written already, too few or too many bytes, a full disk.
        """
        if name not in self._entries or name in self._written:
            problem = "written twice" if name in self._written else "not among the declared tensors"
            raise OutputError(f"the tensor is {problem}", where=f"{self.path} [{name}]")
        entry = self._entries[name]
        start = len(self._front) + entry.offset
        done = crc = 0
        for piece in _pieces(data):
            if done + len(piece) > entry.size:
                raise self._wrong_size(entry, f"more than {done + len(piece) - 1} bytes")
            self._put(start + done, piece)
            crc = crc32(piece, crc)
            done += len(piece)
        if done != entry.size:
            raise self._wrong_size(entry, f"{done} bytes")
        self._put(start + done, padding(done))
        self._checksum.add(start, aligned(done), crc32(padding(done), crc)) if done else None
        self._written.add(name)

    def _wrong_size(self, entry: IndexEntry, found: str) -> OutputError:
        return OutputError(
            "the data does not fit the declared shape",
            where=f"{self.path} [{entry.name}]",
            expected=f"{entry.size} bytes for {entry.dtype.name} {list(entry.shape)}",
            found=found,
        )

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            count = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[count:], offset + count

    def __enter__(self) -> Self:
        self._file = self._open.__enter__()
        try:
            self._put(0, self._front)
        except BaseException as error:
            self._open.__exit__(type(error), error, error.__traceback__)
            raise
        self._checksum.add(0, len(self._front), crc32(self._front))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                self._complete()
            except BaseException as failure:
                self._open.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._open.__exit__(kind, error, trace)

    def _complete(self) -> None:
        missing = [name for name, entry in self._entries.items() if name not in self._written and entry.size]
        if missing:
            raise OutputError("tensors were declared and not written", where=self.path, found=", ".join(missing[:8]))
        crc = self._checksum.combined()
        if crc is None or list(self._checksum.missing(self._end)):
            raise OutputError("a part of the file was not written", where=self.path)
        self._put(self._end, crc.to_bytes(4, "little"))


def _pieces(data: Data | Iterable[Data]) -> Iterator[memoryview]:
    pieces: Iterable[Data] = [data] if isinstance(data, np.ndarray | memoryview | bytes | bytearray) else data
    for piece in pieces:
        yield bytes_of(piece)


def _lay_out(specs: list[TensorSpec], path: object) -> dict[str, IndexEntry]:
    """Give every tensor its offset, in the order given."""
    entries: dict[str, IndexEntry] = {}
    offset = 0
    for spec in specs:
        size = _check_spec(spec, path)
        if spec.name in entries:
            raise FormatError("the tensor is declared twice", path=path, field=f"tensor {spec.name}")
        entries[spec.name] = IndexEntry(spec.name, DTYPES[spec.dtype], tuple(spec.shape), offset, size)
        offset += aligned(size)
    return entries


def _check_spec(spec: TensorSpec, path: object) -> int:
    field = f"tensor {spec.name}"
    try:
        name = spec.name.encode()
    except UnicodeEncodeError as error:
        raise FormatError("a tensor name is not valid Unicode", path=path, field=repr(spec.name)) from error
    if not 0 < len(name) <= MAX_NAME_SIZE or b"\0" in name:
        expected = f"1 to {MAX_NAME_SIZE} bytes without a NUL"
        raise FormatError("a tensor name that cannot be stored", path=path, field=field, expected=expected)
    if spec.dtype not in APR_IDS:
        raise FormatError(
            f"the format has no id for {spec.dtype}",
            path=path,
            field=field,
            expected=f"one of {', '.join(sorted(APR_IDS))}",
            found=spec.dtype,
            hint="Decode it to F32, F16 or BF16.",
        )
    fits = len(spec.shape) <= MAX_DIMENSIONS and all(size >= 0 for size in spec.shape)
    if not fits or not DTYPES[spec.dtype].fits(math.prod(spec.shape)):
        problem = f"a shape that {spec.dtype} cannot have"
        raise FormatError(problem, path=path, field=field, found=list(spec.shape))
    if spec.placeholder and not is_placeholder(spec.name, spec.dtype, spec.shape, 0):
        problem = "only an output head can be declared without data"
        raise FormatError(problem, path=path, field=field, expected=f"{' or '.join(sorted(TIED_HEADS))}, F32")
    return spec.nbytes


def _front(metadata: bytes, entries: list[IndexEntry], flags: int) -> bytes:
    """Everything before the data: header, metadata, sorted index, each padded."""
    index = b"".join(entry.pack() for entry in sorted(entries, key=lambda entry: entry.name.encode()))
    index_offset = HEADER_SIZE + aligned(len(metadata))
    header = FixedHeader(
        flags=flags,
        tensor_count=len(entries),
        metadata_size=len(metadata),
        index_offset=index_offset,
        data_offset=index_offset + aligned(len(index)),
    )
    return b"".join((header.pack(), metadata, padding(len(metadata)), index, padding(len(index))))


def rewrite(
    source: AprReader,
    target: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    *,
    progress: Progress | None = None,
) -> None:
    """Write `source`'s tensors with `metadata` instead of its own; flags and the order of the data are kept.

    `target` may be the source's own path. The source's checksum is checked on the bytes that are copied (if it was opened
    so) before the new file takes its place.

    Raises:
        FormatError: the source is damaged, or the metadata cannot be written.
        OutputError: the target cannot be written. An old file is then as it was.
    """
    entries = sorted(source.entries.values(), key=lambda entry: (entry.offset, entry.size))
    specs = [TensorSpec(entry.name, entry.dtype.name, entry.shape, placeholder=entry.is_placeholder) for entry in entries]
    with (
        AprWriter(target, metadata, specs, flags=int(source.flags), keep_order=True) as writer,
        source.stream() as stream,
    ):
        for entry in entries:
            writer.write(entry.name, stream.chunks(entry.name))
            if progress is not None:
                progress(entry.size)

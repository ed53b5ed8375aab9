"""Open an `.apr` file: everything is checked before use, nothing but the header is read until a tensor is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from apr_train.checkpoint.apr.fixed_header import FixedHeader, parse_header
from apr_train.checkpoint.apr.header import header_from_apr
from apr_train.checkpoint.apr.index import IndexEntry, parse_index
from apr_train.checkpoint.apr.layout import HEADER_SIZE, Flags
from apr_train.checkpoint.apr.metadata import parse_metadata
from apr_train.checkpoint.apr.stream import AprStream, Progress
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.checkpoint.content_hash import content_hash
from apr_train.checkpoint.dtypes import NUMPY_DTYPES, elements_of
from apr_train.checkpoint.files import InputFile
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.quantization import decode
from apr_train.errors import FormatError


class AprReader:
    """One open `.apr` file; implements `apr_train.checkpoint.checkpoint.Checkpoint`.

    With `verify` (the default) no tensor data is handed out before the file's trailing CRC32 was found right: the first
    `read` checks it once, `stream` checks it as it goes.
    """

    header: Header
    raw_metadata: Mapping[str, Any]
    """As it stands in the file, without nulls."""
    flags: Flags
    entries: Mapping[str, IndexEntry]
    verify_data: bool

    def __init__(self, file: InputFile, *, verify: bool, whole: bool = True) -> None:
        self._file = file
        self.verify_data = verify
        self._verified = False
        self._fixed = parse_header(file.read(0, min(HEADER_SIZE, file.size)), file.size, file.path)
        fixed = self._fixed
        self.flags = Flags(fixed.flags)
        if whole and self.flags & Flags.SHARDED:
            raise FormatError(
                "this is one shard of several", path=file.path, hint="Open the folder's manifest (.json) instead."
            )
        self.raw_metadata = parse_metadata(file.read(fixed.metadata_offset, fixed.metadata_size), file.path)
        index = file.read(fixed.index_offset, fixed.data_offset - fixed.index_offset)
        self.entries = parse_index(index, fixed, file.size, file.path)
        self.header = header_from_apr(str(file.path), dict(self.raw_metadata), tensor_infos(self.entries), fixed.flags)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> AprReader:
        """Open and check a file's structure; `verify=False` skips the checksum over the data.

        Raises:
            FormatError: whatever is wrong with the file.
        """
        return cls.over(InputFile(path), verify=verify)

    @classmethod
    def over(cls, file: InputFile, *, verify: bool, whole: bool = True) -> AprReader:
        """As `open`, of a file that is open already; `whole=False` accepts one shard of several."""
        try:
            return cls(file, verify=verify, whole=whole)
        except BaseException:
            file.close()
            raise

    @property
    def fixed(self) -> FixedHeader:
        """The numeric header fields."""
        return self._fixed

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
        raw = self.read_raw(name)
        entry = self.entries[name]
        dtype = entry.dtype.name
        if dtype in NUMPY_DTYPES:
            array = np.frombuffer(raw, NUMPY_DTYPES[dtype])
        else:
            dtype, array = "F32", decode(entry.dtype, raw, elements_of(entry.shape))
            array.flags.writeable = False
        return TensorView(dtype, array.reshape(entry.shape))

    def read_raw(self, name: str) -> memoryview:
        """The tensor's bytes as a view of the memory map."""
        entry = self.entries[name]
        self.verify_once()
        return self._file.view(self._fixed.data_offset + entry.offset, entry.size)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Copy the tensor's bytes into a writable buffer of exactly their size, without mapping them."""
        self.verify_once()
        self.stream(verify=False).read_into(name, buffer)

    def content_hash(self) -> str:
        """SHA-256 over metadata, names, dtypes, shapes and tensor bytes: the same model has the same hash."""
        return content_hash(self.raw_metadata, self.header.tensors, self.read_raw)

    def verify_once(self, progress: Progress | None = None) -> None:
        """`verify`, unless that was done before or the file was opened without."""
        if self.verify_data and not self._verified:
            self.verify(progress)

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

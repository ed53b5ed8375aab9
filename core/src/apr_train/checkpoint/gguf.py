"""GGUF checkpoints: llama.cpp's files, read-only."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from apr_train.checkpoint.checkpoint import TensorView
from apr_train.checkpoint.content_hash import content_hash
from apr_train.checkpoint.ggml import dequantize
from apr_train.checkpoint.gguf_index import GgufIndex, read_gguf_index
from apr_train.checkpoint.gguf_metadata import header_from_gguf
from apr_train.checkpoint.views import map_file, plain_view


class GgufReader:
    """An open GGUF file; plain tensors are views of the memory map, quantised ones arrive as F32. Make it with `open`."""

    def __init__(self, path: Path, data: memoryview, index: GgufIndex) -> None:
        self.metadata = index.metadata
        self.header = header_from_gguf(str(path), index.metadata, dict(sorted(index.tensors.items())))
        self._data = data
        self._places = index.places

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file; nothing but its front is read.

        Raises:
            FormatError: for anything that is not as the format says.
        """
        data = map_file(path)
        return cls(path, data, read_gguf_index(data, path))

    def read(self, name: str) -> TensorView:
        """The tensor: zero-copy if it is plain, dequantised to F32 if not."""
        tensor, place = self.header.tensors[name], self._places[name]
        raw = self.read_raw(name)
        if not place.kind.quantized:
            return plain_view(tensor.dtype, tensor.shape, raw)
        floats = dequantize(place.kind, raw, tensor.shape, path=self.header.path, name=name)
        floats.flags.writeable = False
        return TensorView("F32", floats)

    def read_raw(self, name: str) -> memoryview:
        """The tensor's bytes as they lie in the file."""
        place = self._places[name]
        return self._data[place.start : place.end]

    def content_hash(self) -> str:
        """SHA-256 over metadata, names, dtypes, shapes and bytes."""
        return content_hash(self.metadata, self.header.tensors, self.read_raw)

    def close(self) -> None:
        """Let go of the file; the map stays until the last view is gone."""
        self._data = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

"""The interface of an open checkpoint, whatever the container: header, tensors as numpy views, streams, a content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from attrs import field, frozen

from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.reference import KEY as REFERENCE

Progress = Callable[[int], None]
"""Called with the number of bytes that were just read."""


@frozen(eq=False)
class TensorView:
    """A tensor as numpy sees it: zero-copy where the file's dtype has a numpy type, dequantised where not."""

    dtype: str
    """One of the names in `dtypes.PLAIN`; block-quantised tensors arrive as `F32`."""
    data: np.ndarray[Any, Any] = field(repr=False)
    """In the tensor's shape; read-only; bf16 as uint16 bits."""


class Checkpoint(Protocol):
    """An open checkpoint; a context manager. Readers raise `FormatError` and nothing else for a bad file."""

    header: Header

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the checkpoint consists of: weights, index, config, tokenizer, card."""
        ...

    def read(self, name: str) -> TensorView:
        """The tensor, dequantised if it is block-quantised; KeyError for a name that the header does not have."""
        ...

    def read_raw(self, name: str) -> memoryview:
        """The tensor's bytes as they lie in the file."""
        ...

    def content_hash(self) -> str:
        """SHA-256 over what the model is (metadata, names, dtypes, shapes, tensor bytes), as lower-case hex."""
        ...

    def close(self) -> None:
        """Let go of the file; views become invalid."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Stream(Protocol):
    """One pass over a file, in any order; nothing that was read may be used before the context has been left.

    Leaving it raises `FormatError` when the bytes do not have the file's checksum.
    """

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill a writable buffer of exactly the tensor's stored size."""
        ...

    def parts(self, name: str, buffer: memoryview) -> Iterator[Callable[[], int]]:
        """`read_into` in calls that threads may make in any order; each returns its bytes."""
        ...

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The tensor's bytes in order; each piece is valid until the next."""
        ...

    def values(self, name: str) -> Iterator[TensorView]:
        """The tensor's elements in order, flat, decoded to float32 if block-quantised; each is valid until the next."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@runtime_checkable
class Streaming(Protocol):
    """A checkpoint that can be streamed."""

    verify_data: bool
    """Whether a stream checks the data unless told otherwise."""

    def stream(self, *, verify: bool | None = None) -> Stream:
        """Start a pass; `verify` None does as the checkpoint was opened."""
        ...


def content_hash(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read_raw: Callable[[str], memoryview]) -> str:
    """SHA-256 over canonical JSON of the metadata, then each tensor in name order; lower-case hex.

    The reference loss does not count: it is a measurement of the model, and a file stays the same model when it is noted.
    """
    metadata = {key: value for key, value in metadata.items() if key != REFERENCE}
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True, ensure_ascii=False, default=repr).encode(errors="replace"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, tensor.dtype, list(tensor.shape), tensor.nbytes]).encode())
        digest.update(read_raw(name))
    return digest.hexdigest()

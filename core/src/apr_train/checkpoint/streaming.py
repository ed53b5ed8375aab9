"""What a container offers beside `Checkpoint` when its bytes can be read straight into a model's memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from apr_train.checkpoint.checkpoint import TensorView


class Stream(Protocol):
    """One pass over a file, in any order; nothing that was read may be used before the context has been left.

    Leaving it raises `FormatError` when the bytes do not have the file's checksum.
    """

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill a writable buffer of exactly the tensor's stored size."""
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

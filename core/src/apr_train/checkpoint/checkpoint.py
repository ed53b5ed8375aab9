"""The one interface of every container: a header, and tensors as numpy views."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from attrs import field, frozen

from apr_train.checkpoint.header import Header

FLOAT_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Safetensors' spelling → bytes per element."""


@frozen(eq=False)
class TensorView:
    """A tensor as numpy sees it: zero-copy where the file's dtype has a numpy type, dequantised where not."""

    dtype: str
    """`F32`, `F16`, `BF16`, `F64`, `I32`, `I64`, `I8`, `U8`; block-quantised tensors arrive as `F32`."""
    data: np.ndarray[Any, Any] = field(repr=False)
    """In the tensor's shape; read-only; bf16 as uint16 bits."""


class Checkpoint(Protocol):
    """An open checkpoint; a context manager. Readers raise `FormatError` and nothing else for a bad file."""

    header: Header

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

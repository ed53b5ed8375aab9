"""The operations between a checkpoint's tensors and a model's parameters, and the parts of a tensor. Torch-free.

An operation works on numpy arrays and on torch tensors alike, through what both have (`reshape`, `swapaxes`, `T`, `+`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from attrs import frozen


class Operation(Protocol):
    """A change of one tensor between file and model; the two directions are exact inverses, which the conformance kit tries.

    Two members are optional. `checkpoint_shape(shape)` gives the file's shape, of symbols or numbers, for a parameter's;
    without it the shape stays. `moves_rows_only = True` says that whole rows change places and no value is looked at, so
    that rows of quantised blocks may go through undecoded.
    """

    def to_parameter(self, tensor: Any) -> Any:
        """Bring a tensor from the file's form into the model's."""
        ...

    def to_checkpoint(self, tensor: Any) -> Any:
        """Bring a tensor from the model's form into the file's."""
        ...


def checkpoint_shape(operation: Operation, shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """The shape in the file, of symbols or numbers, of what has `shape` in the model."""
    change = getattr(operation, "checkpoint_shape", None)
    return shape if change is None else tuple(change(shape))


def moves_rows_only(operation: Operation) -> bool:
    """Whether an operation says of itself that it moves whole rows and looks at no value."""
    return bool(getattr(operation, "moves_rows_only", False))


@frozen
class Identity:
    """No change: only the name, or the place, differs."""

    moves_rows_only = True

    def to_parameter(self, tensor: Any) -> Any:
        """Return the tensor as it is."""
        return tensor

    def to_checkpoint(self, tensor: Any) -> Any:
        """Return the tensor as it is."""
        return tensor


@frozen
class RopeRowPermutation:
    """Rows of q or k: adjacent pairs (GGUF's llama order) in the file, split halves in the model.

    Source: `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, and its inverse.
    """

    heads: int
    """Heads in this tensor: query heads for q, kv heads for k."""

    moves_rows_only = True

    def to_parameter(self, tensor: Any) -> Any:
        """`[heads*head_dim, …]` with rows 2i, 2i+1 a pair → rows i, i + head_dim/2 a pair."""
        rows = tensor.shape[0]
        return tensor.reshape(self.heads, rows // self.heads // 2, 2, -1).swapaxes(1, 2).reshape(tensor.shape)

    def to_checkpoint(self, tensor: Any) -> Any:
        """The inverse of `to_parameter`."""
        rows = tensor.shape[0]
        return tensor.reshape(self.heads, 2, rows // self.heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


@frozen
class Transpose:
    """A matrix that lies in the file as its transpose, `[in, out]` (transformers' Conv1D of GPT-2)."""

    def to_parameter(self, tensor: Any) -> Any:
        """`[in, out]` → `[out, in]`."""
        return tensor.T

    def to_checkpoint(self, tensor: Any) -> Any:
        """`[out, in]` → `[in, out]`."""
        return tensor.T

    def checkpoint_shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """The two sizes the other way round."""
        return shape[::-1]


@frozen
class AddOffset:
    """A file that holds parameter + offset, in the tensor's own float type.

    Source: llama.cpp's conversion of a Gemma adds one to the weights of all norms (`norm_shift` in conversion/gemma.py).
    """

    offset: float

    def to_parameter(self, tensor: Any) -> Any:
        """The file's values less the offset."""
        return tensor - self.offset

    def to_checkpoint(self, tensor: Any) -> Any:
        """The model's values plus the offset."""
        return tensor + self.offset


@frozen
class Region:
    """A part of a tensor along one of its axes."""

    dim: int
    start: int
    length: int
    index: bool = False
    """Whether the part is one index of the axis, which the part itself does not have (an expert of a stack)."""

    @property
    def stop(self) -> int:
        """The first index behind the part."""
        return self.start + self.length

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The part's shape, of a tensor of this shape."""
        return (*shape[: self.dim], *(() if self.index else (self.length,)), *shape[self.dim + 1 :])

    def of(self, tensor: Any) -> Any:
        """A view of the part."""
        place = self.start if self.index else slice(self.start, self.stop)
        return tensor[(*(slice(None),) * self.dim, place)]

    def __str__(self) -> str:
        if self.index:
            return f"expert {self.start}" if self.length == 1 else f"experts {self.start} to {self.stop - 1}"
        axis = {0: "rows", 1: "columns"}.get(self.dim, f"axis {self.dim},")
        return f"{axis} {self.start} to {self.stop - 1}"


def part_of(tensor: Any, region: Region | None) -> Any:
    """A view of a part of a tensor; None is the whole."""
    return tensor if region is None else region.of(tensor)


def joined(shape: tuple[int, ...], pieces: Iterable[tuple[Region | None, Any]]) -> Any:
    """A tensor of that shape from pieces that fill it, of the first piece's library, type and device.

    A single whole piece is returned as it is.
    """
    import numpy as np  # a list of plugins is told without it

    whole: Any = None
    for region, piece in pieces:
        if region is None:
            return piece
        if whole is None:
            whole = piece.new_empty(shape) if hasattr(piece, "new_empty") else np.empty(shape, piece.dtype)
        place = region.start if region.index else slice(region.start, region.stop)
        whole[(*(slice(None),) * region.dim, place)] = piece
    return whole

"""Operations on one tensor between a checkpoint and a model, in both directions.

Torch-free: `reshape` and `swapaxes` exist on numpy arrays and on torch tensors.
"""

from __future__ import annotations

from typing import Any, Protocol

from attrs import frozen


class Operation(Protocol):
    """A change of one tensor's values between file and model; the two directions are exact inverses."""

    def to_parameter(self, tensor: Any) -> Any:
        """Bring a tensor from the file's order into the model's; the shape stays."""
        ...

    def to_checkpoint(self, tensor: Any) -> Any:
        """Bring a tensor from the model's order into the file's; the shape stays."""
        ...


@frozen
class Identity:
    """No change: only the name differs."""

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

    def to_parameter(self, tensor: Any) -> Any:
        """`[heads*head_dim, …]` with rows 2i, 2i+1 a pair → rows i, i + head_dim/2 a pair."""
        rows = tensor.shape[0]
        return tensor.reshape(self.heads, rows // self.heads // 2, 2, -1).swapaxes(1, 2).reshape(tensor.shape)

    def to_checkpoint(self, tensor: Any) -> Any:
        """The inverse of `to_parameter`."""
        rows = tensor.shape[0]
        return tensor.reshape(self.heads, 2, rows // self.heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)

"""Torch tensors over the numpy views that containers hand out, and back."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from apr_train.checkpoint.checkpoint import TensorView
from apr_train.checkpoint.dtypes import DTYPES
from apr_train.errors import FormatError

TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, dtype.torch) for name, dtype in DTYPES.items() if dtype.torch is not None
}
"""A container's spelling → torch's dtype."""
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""Torch's dtype → a container's spelling."""


def to_torch(view: TensorView) -> torch.Tensor:
    """A tensor over the same memory, bf16 by its bits. Never write to it: the memory may be a read-only map.

    Raises:
        FormatError: for a dtype that torch does not have.
    """
    if view.dtype not in TORCH_DTYPES:
        raise FormatError("a dtype that torch does not have", path="tensor", expected=", ".join(TORCH_DTYPES), found=view.dtype)
    dtype = TORCH_DTYPES[view.dtype]
    array = view.data.view(np.int16) if dtype is torch.bfloat16 else view.data
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # the docstring says it
        return torch.from_numpy(array).view(dtype)


def to_view(tensor: torch.Tensor) -> TensorView:
    """A contiguous CPU tensor's memory as numpy sees it, bf16 as uint16 bits: what writers take.

    Raises:
        FormatError: for a dtype that no container has.
    """
    found = tensor.detach()
    if found.dtype not in DTYPE_NAMES:
        raise FormatError("a dtype that no container has", path="tensor", found=found.dtype)
    found = found.cpu().contiguous()
    bits = found.view(torch.int16) if found.dtype is torch.bfloat16 else found
    array = bits.numpy()
    return TensorView(DTYPE_NAMES[found.dtype], array.view(np.uint16) if found.dtype is torch.bfloat16 else array)

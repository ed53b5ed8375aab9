"""Torch tensors over the numpy views that containers hand out; the only module of this package that imports torch."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from apr_train.checkpoint.checkpoint import TensorView
from apr_train.errors import FormatError

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""A container's spelling → torch's dtype."""
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""Torch's dtype → a container's spelling."""


def torch_dtype(name: str, *, where: object) -> torch.dtype:
    """The torch dtype of a container's spelling.

    Raises:
        FormatError: when torch has none.
    """
    if name not in TORCH_DTYPES:
        raise FormatError("a dtype that torch does not have", path=where, expected=", ".join(TORCH_DTYPES), found=name)
    return TORCH_DTYPES[name]


def to_torch(view: TensorView) -> torch.Tensor:
    """A tensor over the same memory, bf16 by its bits. Never write to it: the memory may be a read-only map.

    Raises:
        FormatError: for a dtype that torch does not have.
    """
    dtype = torch_dtype(view.dtype, where="tensor")
    array = view.data.view(np.int16) if dtype is torch.bfloat16 else view.data
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # said in our docstring
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

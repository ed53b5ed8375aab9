"""The device: which one, in which precision, how much memory it took, and what is said when there is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from attrs import frozen

from apr_train.errors import RunError
from apr_train.model.tensors import TORCH_DTYPES
from apr_train.run.precision import PRECISION_TYPES, PrecisionTypes
from apr_train.run.resident import resident_peak


@frozen(kw_only=True)
class Precision:
    """How a run computes: `PrecisionTypes` with torch's types."""

    name: str
    """`fp32`, `bf16` or `bf16-weights`."""
    weights: torch.dtype
    """Of parameters, gradients and optimizer state."""
    autocast: torch.dtype | None
    """Of matrix products, when it is another one."""
    kernel_dtype: str
    """Dtype of q, k and v, in safetensors' spelling."""

    @classmethod
    def of(cls, name: str, types: PrecisionTypes) -> Precision:
        """The precision of that name."""
        weights, products = TORCH_DTYPES[types.weights], TORCH_DTYPES[types.products]
        return cls(name=name, weights=weights, autocast=None if products == weights else products, kernel_dtype=types.products)

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """What forward passes run under."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)


PRECISIONS = {name: Precision.of(name, types) for name, types in PRECISION_TYPES.items()}
"""What `--precision` takes → how it computes."""


def default_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it natively, fp32 elsewhere."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_native_bf16() else "fp32"


def _has_native_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(name: str | None) -> torch.device:
    """The device that was asked for; otherwise CUDA when there is one.

    Raises:
        RunError: for a name that torch does not know, or CUDA where there is none.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError("no such device", where="--device", expected="cpu, cuda or cuda:N", found=name) from error
    if device.type not in ("cpu", "cuda"):
        raise RunError("training is not tried on this device", where="--device", expected="cpu or cuda", found=name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError("there is no such CUDA device here", where="--device", found=name)
    return device


def peak_memory(device: torch.device) -> int:
    """Bytes: what torch had allocated on CUDA at most, else the process's largest resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resident_peak()


@contextmanager
def memory_errors(where: str) -> Iterator[None]:
    """Say what to do when torch gets no memory.

    Raises:
        RunError: instead of torch's or Python's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_lack(error):
            raise
        hint = "Start a new run with a smaller --batch-size (and a larger --accumulate for the same step), or with --recompute."
        raise RunError("not enough memory", where=where, found=str(error).partition("\n")[0], hint=hint) from error


def _is_lack(error: Exception) -> bool:
    """A CPU's lack of memory is a plain RuntimeError that only its text tells from others."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)

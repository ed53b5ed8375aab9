"""Which dtype the weights have, and which one the matrix products run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from attrs import frozen

from apr_train.errors import RunError


@frozen(kw_only=True)
class Precision:
    """How a run computes."""

    name: str
    """`fp32`, `bf16` or `bf16-weights`."""
    weights: torch.dtype
    """Of parameters, gradients and optimizer state."""
    autocast: torch.dtype | None
    """Of matrix products, when it is another one."""

    @property
    def kernel_dtype(self) -> str:
        """Dtype of q, k and v, in safetensors' spelling."""
        return "F32" if self.name == "fp32" else "BF16"

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """What forward passes run under."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)


PRECISIONS = {
    "fp32": Precision(name="fp32", weights=torch.float32, autocast=None),
    "bf16": Precision(name="bf16", weights=torch.float32, autocast=torch.bfloat16),
    "bf16-weights": Precision(name="bf16-weights", weights=torch.bfloat16, autocast=None),
}


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

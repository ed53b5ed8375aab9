"""What a device can do at most: by the table of peaks.toml, as the user says, or, of a CPU, as a short matrix product shows."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from time import perf_counter
from typing import Any

import torch

from apr_train.model.device import Precision
from apr_train.model.tensors import TORCH_DTYPES
from apr_train.run.machine import Peak

_SIDE = 1024
"""Of the square matrices: a product of a few tens of milliseconds on one core."""
_SECONDS = 0.1
"""Of measuring, besides a first product and one that is under way."""
_RATES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def device_name(device: torch.device) -> str:
    """What the vendor calls a CUDA device; of a CPU the widest instructions that torch uses on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})"


def device_peak(device: torch.device, precision: Precision, *, asked: float | None = None) -> Peak | None:
    """The most that the device does in the precision of the matrix products; None where nobody knows.

    Args:
        asked: of `--peak-tflops`, in 10¹² operations a second.
    """
    if asked is not None:
        return Peak(flops_per_s=asked * 1e12, known_from="asked", source="--peak-tflops")
    dtype = TORCH_DTYPES[precision.kernel_dtype]
    if device.type == "cpu":
        return Peak(
            flops_per_s=measured_rate(dtype), known_from="measured", source=f"{_RATES[dtype]} products of {_SIDE} × {_SIDE}"
        )
    return table_peak(device_name(device), rate_name(dtype))


def rate_name(dtype: torch.dtype) -> str:
    """The rate of the table that float32 products and others run at: TensorFloat-32 where torch is told that it may."""
    allowed = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed else _RATES[dtype]


def table_peak(name: str, rate: str) -> Peak | None:
    """The peak of the table for a device's whole name; None for one that it does not have, or not at that rate."""
    for entry in peak_table():
        if re.fullmatch(entry["name"], name) and rate in entry:
            return Peak(flops_per_s=entry[rate] * 1e12, known_from="table", source=entry["source"])
    return None


def peak_table() -> list[dict[str, Any]]:
    """The entries of peaks.toml."""
    text = resources.files(__package__).joinpath("peaks.toml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = tomllib.loads(text)["device"]
    return entries


@torch.no_grad()
def measured_rate(dtype: torch.dtype) -> float:
    """Operations a second of the fastest of some matrix products on the CPU, with torch's threads as they are.

    Draws no random numbers and changes no setting, so that what is trained afterwards is the same.
    """
    left, right = (torch.ones(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
    out = left @ right  # the first one chooses its kernel
    best, begin = float("inf"), perf_counter()
    while (start := perf_counter()) - begin < _SECONDS:
        torch.mm(left, right, out=out)
        best = min(best, perf_counter() - start)
    return 2 * _SIDE**3 / best

"""Comparison of two implementations of the same model: relative errors per tensor, and a finding for each too large one.

Works on torch tensors and on numpy arrays; everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from apr_train.errors import AprTrainError, Finding


class ConformanceError(AprTrainError):
    """A family that breaks the contract; a test that calls the kit fails with this message."""

    longest = 1 << 20  # every fault of every check: it is about the author's own code, and no file decides how long it is


def fail_on(faults: Iterable[str], *, where: str) -> None:
    """Raise one error with a finding per fault; do nothing when there are none.

    Raises:
        ConformanceError: when `faults` has any.
    """
    findings = [Finding(problem=fault, subject=where) for fault in faults]
    if findings:
        raise ConformanceError.of(findings)


FLOAT32 = 1e-5
"""Largest relative error between two float32 implementations that differ in the order of their sums only."""
FLOAT64 = 1e-9
"""The same in float64, norms and rotary tables in float64 on both sides."""
BFLOAT16 = 2**-6
"""Four roundings of bfloat16 (2⁻⁸ each): what is no fault in any model; see `compare_models` for more."""
FLOAT16 = 2**-9
"""The same for float16 (2⁻¹¹ each)."""


def tolerance_of(tensors: Iterable[Any]) -> float:
    """What two implementations may differ by that compute in the narrowest dtype of these torch tensors.

    float32: 1e-5, where the twelve families of docs/families were at 1e-6 or below; float64: 1e-9, where they were at 2e-15.
    bfloat16 and float16: four roundings; they were up to 13 away in logits and 100 in single gradients of a deep model.
    """
    names = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    limits = {"bfloat16": BFLOAT16, "float16": FLOAT16, "float32": FLOAT32}
    return next((limit for name, limit in limits.items() if name in names), FLOAT64)


def relative_error(ours: Any, reference: Any) -> float:
    """`‖ours − reference‖ / ‖reference‖` (Frobenius); the norm of the difference itself where the reference is zero.

    Not-a-number in either makes the error infinite: no comparison may pass because of it.
    """
    a, b = _float64(ours), _float64(reference)
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):  # inf - inf: the error below says so
        difference, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    error = difference / size if size else difference
    return error if np.isfinite(error) else float("inf")


def relative_errors(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """Relative error of every tensor that either side has; infinite for one that is missing on the other."""
    return {
        name: relative_error(ours[name], reference[name]) if name in ours and name in reference else float("inf")
        for name in sorted({*ours, *reference})
    }


def check_agreement(ours: Mapping[str, Any], reference: Mapping[str, Any], *, tolerance: float, where: str) -> float:
    """Return the largest relative error, which is at most `tolerance`.

    Raises:
        ConformanceError: listing every tensor that differs more, and by how much.
    """
    errors = relative_errors(ours, reference)
    fail_on(
        (f"{name} differs by {error:.3g}, more than {tolerance:g}" for name, error in errors.items() if error > tolerance),
        where=where,
    )
    return max(errors.values(), default=0.0)


def _float64(tensor: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().double().cpu().numpy()
    return np.asarray(tensor, dtype=np.float64)

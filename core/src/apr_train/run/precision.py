"""The precisions that a run can have, by the types of its weights and of its matrix products. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen


@frozen(kw_only=True)
class PrecisionTypes:
    """The types of one precision, in safetensors' spelling."""

    weights: str
    """Of parameters, gradients and optimizer state."""
    products: str
    """Of matrix products, and of q, k and v in attention; another one than the weights' means autocast."""


PRECISION_TYPES: Mapping[str, PrecisionTypes] = {
    "fp32": PrecisionTypes(weights="F32", products="F32"),
    "bf16": PrecisionTypes(weights="F32", products="BF16"),
    "bf16-weights": PrecisionTypes(weights="BF16", products="BF16"),
}
"""What `--precision` takes → its types."""

"""The MLP of a block, gated or plain, and its activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F


def _relu_squared(x: Tensor) -> Tensor:
    """relu(x)² (So et al. 2021)."""
    return F.relu(x).square()


_tanh_gelu = partial(F.gelu, approximate="tanh")
ACTIVATION_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": F.relu,
    "relu2": _relu_squared,
}
"""By transformers' names; a config with another name is refused when it is made."""


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)) (Shazeer 2020), or down(act(up(x))) without a gate.

    Args:
        hidden: width of the input and of the output.
        intermediate: width inside.
        activation: one of `ACTIVATION_FUNCTIONS`.
        gated: whether there is a `gate_proj`.
        bias: whether the projections have biases.
    """

    def __init__(
        self, hidden: int, intermediate: int, *, activation: str = "silu", gated: bool = True, bias: bool = False
    ) -> None:
        super().__init__()
        self.activation, self.gated = ACTIVATION_FUNCTIONS[activation], gated
        if gated:
            self.gate_proj = nn.Linear(hidden, intermediate, bias=bias)
        self.up_proj = nn.Linear(hidden, intermediate, bias=bias)
        self.down_proj = nn.Linear(intermediate, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden]` in and out."""
        inner = self.activation(self.gate_proj(x) if self.gated else self.up_proj(x))
        out: Tensor = self.down_proj(inner * self.up_proj(x) if self.gated else inner)
        return out

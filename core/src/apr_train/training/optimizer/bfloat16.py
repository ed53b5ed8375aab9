"""Updates of bfloat16 weights: computed in float32, then rounded stochastically, or kept in a float32 master copy.

A bfloat16 number has 8 bits of mantissa: rounded to nearest, an update of less than 1/512 of a weight is lost, every time.
Rounded stochastically it moves the weight with the probability that makes the expected value exact (Gupta et al. 2015,
https://arxiv.org/abs/1502.02551; in training with bfloat16 weights: Zamirai et al. 2020, https://arxiv.org/abs/2010.06192).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PIECE = 2**18
"""Elements that are computed in float32 at a time where an optimizer works element by element: what a cache holds."""
MASTER, STEP = "master", "step"
_KEPT = ~0xFFFF
"""The bits of a float32 number that are a bfloat16 number."""


class Float32Updates(torch.optim.Optimizer):
    """One of torch's optimizers for bfloat16 weights: it computes each parameter's update on float32 copies.

    Groups and state are those of the model's parameters, as of any optimizer. With a master copy the state is float32 and has
    the copy, too. Without, the state is of the weights' own type, and the new weights are rounded stochastically, by bits that
    depend on the seed, the parameter's name and the number of its updates alone.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        kind: Callable[[Any], torch.optim.Optimizer],
        *,
        moments: Sequence[str],
        elementwise: bool,
        master: bool,
        names: Mapping[Tensor, str],
        seed: int,
    ) -> None:
        """Take over the groups.

        Args:
            groups: as torch's optimizers take them.
            kind: makes the optimizer that computes the updates, of groups as torch's optimizers take them.
            moments: what it calls those tensors of a parameter's state that have the parameter's shape.
            elementwise: whether it computes each element by itself, so that a parameter may be taken in pieces.
            master: whether a float32 copy is kept, in place of stochastic rounding.
            names: of the parameters.
            seed: of the run.
        """
        self.inner = kind([torch.zeros(1, 1)])  # a parameter's copy takes this one's place in turn
        self._moments, self._elementwise = tuple(moments), elementwise
        self._master, self._names, self._seed = master, names, seed
        super().__init__(groups, self.inner.defaults)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state over as it is; torch would round what is float32 in it to the weights' own type."""
        super().load_state_dict(state_dict)
        numbers = (number for group in state_dict["param_groups"] for number in group["params"])
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        for number, parameter in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                self.state[parameter][key] = value.clone() if key == STEP else value.to(parameter.device, copy=True)

    def blank(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first update."""
        dtype = torch.float32 if self._master else parameter.dtype
        state = {STEP: torch.zeros(())} | {key: torch.zeros_like(parameter, dtype=dtype) for key in self._moments}
        return state | ({MASTER: parameter.detach().float()} if self._master else {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure would want gradients; nobody has one
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            self.inner.param_groups[0].update(group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad)

    def _update(self, parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self.blank(parameter))
        bits = None if self._master else self._generator(parameter, int(state[STEP]))
        kept = [state[key] for key in (*self._moments, MASTER) if key in state]
        for piece in self._pieces(parameter, gradient, *kept):
            self._update_piece(*piece, step=state[STEP], bits=bits)
        state[STEP] += 1

    def _pieces(self, parameter: Tensor, gradient: Tensor, *state: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """A parameter, its gradient and its state side by side: whole, or in flat pieces."""
        if not self._elementwise or not parameter.is_contiguous():
            yield parameter, gradient, *state
            return
        flat = [parameter.view(-1), gradient.reshape(-1), *(tensor.view(-1) for tensor in state)]
        for begin in range(0, parameter.numel(), PIECE):
            yield tuple(tensor[begin : begin + PIECE] for tensor in flat)

    def _update_piece(
        self, weight: Tensor, gradient: Tensor, *state: Tensor, step: Tensor, bits: torch.Generator | None
    ) -> None:
        """Let the inner optimizer take its step on float32 copies, and put the results where they belong."""
        *moments, wide = state if self._master else (*state, weight.float())
        wide.grad = torch.empty_like(wide).copy_(gradient)  # of the same strides, as fused kernels want it
        exact = {key: moment.float() for key, moment in zip(self._moments, moments, strict=True)}
        self.inner.param_groups[0]["params"] = [wide]
        self.inner.state[wide] = {STEP: step.clone().to(weight.device), **exact}
        self.inner.step()
        self.inner.state.clear()
        wide.grad = None
        for moment, value in zip(moments, exact.values(), strict=True):
            moment.copy_(value)  # in a float32 state they are the same
        weight.copy_(wide if bits is None else round_stochastically(wide, bits))

    def _generator(self, parameter: Tensor, count: int) -> torch.Generator:
        said = f"{self._seed} {count} {self._names[parameter]}".encode()
        seed = int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")
        return torch.Generator(parameter.device).manual_seed(seed)


def round_stochastically(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 → bfloat16: to one of the two neighbours, to the nearer one with the higher probability.

    A number between two neighbours goes to the one away from zero with the probability that is its way from the other: what is
    a bfloat16 number stays, and the expected value is the number itself. Infinities stay.

    Args:
        tensor: float32.
        generator: gives 16 random bits an element; of the tensor's device.
    """
    count = tensor.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=tensor.device).random_(-(2**63), None, generator=generator)
    random = words.view(torch.int16)[:count].view(tensor.shape)  # -2^15 to 2^15 - 1
    moved = tensor.view(torch.int32).add(random).add_(2**15)
    return moved.bitwise_and_(_KEPT).view(torch.float32).bfloat16()

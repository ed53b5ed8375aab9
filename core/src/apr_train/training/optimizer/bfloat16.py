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

from apr_train.model.sharding import is_sharded, keep_piece, local, offset_of, whole

PIECE = 2**18
"""Elements that are computed in float32 at a time where an optimizer works element by element: what a cache holds.

The random bits of so many elements of a parameter come from one generator, wherever the parameter is cut.
"""
MASTER, STEP = "master", "step"
_KEPT = ~0xFFFF
"""The bits of a float32 number that are a bfloat16 number."""


class Float32Updates(torch.optim.Optimizer):
    """One of torch's optimizers for bfloat16 weights: it computes each parameter's update on float32 copies.

    Groups and state are those of the model's parameters, as of any optimizer. With a master copy the state is float32 and has
    the copy, too. Without, the state is of the weights' own type, and the new weights are rounded stochastically, by bits that
    depend on the seed, the parameter's name and the number of its updates alone. Of a sharded parameter each process updates
    its piece, with the bits that the whole one would have there; an optimizer that is not elementwise works on the whole one,
    gathered on every process.
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
        kept = [parameter, *(state[key] for key in (*self._moments, MASTER) if key in state)]
        bits = None if self._master else _Bits(self._said(parameter, int(state[STEP])), parameter.numel(), parameter.device)
        if self._elementwise or not is_sharded(parameter):
            self._update_here(local(gradient), *map(local, kept), step=state[STEP], bits=bits, begin=offset_of(parameter))
        else:
            wholes = [whole(tensor) for tensor in kept]
            self._update_here(whole(gradient), *wholes, step=state[STEP], bits=bits, begin=0)
            for tensor, values in zip(kept, wholes, strict=True):
                keep_piece(tensor, values)
        state[STEP] += 1

    def _update_here(self, gradient: Tensor, *kept: Tensor, step: Tensor, bits: _Bits | None, begin: int) -> None:
        """Update a parameter and its state in place; its first element is number `begin` of the whole parameter."""
        for start, piece in self._pieces(gradient, *kept):
            drawn = None if bits is None else bits.of(begin + start, piece[0].shape)
            self._update_piece(*piece, step=step, bits=drawn)

    def _pieces(self, gradient: Tensor, parameter: Tensor, *state: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Where a piece begins; a gradient, its parameter and its state side by side: whole, or in flat pieces."""
        if not self._elementwise or not parameter.is_contiguous():
            yield 0, (gradient, parameter, *state)
            return
        flat = [gradient.reshape(-1), parameter.view(-1), *(tensor.view(-1) for tensor in state)]
        for begin in range(0, parameter.numel(), PIECE):
            yield begin, tuple(tensor[begin : begin + PIECE] for tensor in flat)

    def _update_piece(self, gradient: Tensor, weight: Tensor, *state: Tensor, step: Tensor, bits: Tensor | None) -> None:
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

    def _said(self, parameter: Tensor, count: int) -> str:
        return f"{self._seed} {count} {self._names[parameter]}"


class _Bits:
    """The random bits of one update of one parameter, 16 for each of its elements.

    Those of each `PIECE` elements have a seed of their own: whoever has only a part of the parameter draws no more than that,
    and the same bits.
    """

    def __init__(self, seed: str, count: int, device: torch.device) -> None:
        self._seed, self._count, self._device = seed, count, device

    def of(self, begin: int, shape: torch.Size) -> Tensor:
        """Those of the elements from `begin` on, in the parameter's order: int16, of a shape."""
        end = begin + shape.numel()
        found = [
            self._piece(number)[max(0, begin - number * PIECE) : end - number * PIECE]
            for number in range(begin // PIECE, -(-end // PIECE))
        ]
        return (found[0] if len(found) == 1 else torch.cat(found)).view(shape)

    def _piece(self, number: int) -> Tensor:
        said = self._seed if number == 0 else f"{self._seed} {number}"
        seed = int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big")
        generator = torch.Generator(self._device).manual_seed(seed)
        return random_bits(min(PIECE, self._count - number * PIECE), generator)


def random_bits(count: int, generator: torch.Generator) -> Tensor:
    """`[count]` int16, from -2^15 to 2^15 - 1."""
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device).random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[:count]


def round_stochastically(tensor: Tensor, bits: Tensor) -> Tensor:
    """Float32 → bfloat16: to one of the two neighbours, to the nearer one with the higher probability.

    A number between two neighbours goes to the one away from zero with the probability that is its way from the other: what is
    a bfloat16 number stays, and the expected value is the number itself. Infinities stay.

    Args:
        tensor: float32.
        bits: as `random_bits` gives them, one for each element.
    """
    moved = tensor.view(torch.int32).add(bits).add_(2**15)
    return moved.bitwise_and_(_KEPT).view(torch.float32).bfloat16()

"""Updates of bfloat16 weights: computed in float32, then rounded stochastically, or kept in a float32 master copy.

A bfloat16 number has 8 bits of mantissa: rounded to nearest, an update of less than 1/512 of a weight is lost, every time.
Rounded stochastically it moves the weight with the probability that makes the expected value exact (Gupta et al. 2015,
https://arxiv.org/abs/1502.02551; in training with bfloat16 weights: Zamirai et al. 2020, https://arxiv.org/abs/2010.06192).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from apr_train.model.sharding import is_sharded, keep_piece, local, offset_of, whole

PIECE = 2**18
"""Elements that are computed in float32 at a time where an optimizer works element by element: what a cache holds.

The random bits of so many elements of a parameter come from one seed, wherever the parameter is cut.
"""
MASTER, STEP = "master", "step"
_LOWER, _UPPER = 0xFFFF, ~0xFFFF
"""The halves of a word; the upper one of a float32 number is a bfloat16 number."""


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
            elementwise: whether that is AdamW, which computes each element by itself, so that a parameter is taken in pieces.
            master: whether a float32 copy is kept, in place of stochastic rounding.
            names: of the parameters.
            seed: of the run.
        """
        self.inner = kind([torch.zeros(1, 1)])  # a parameter's copy takes this one's place in turn
        self._moments, self._elementwise = tuple(moments), elementwise
        self._master, self._names, self._seed = master, names, seed
        self._scratch: dict[tuple[torch.device, int], Tensor] = {}
        self._tables: dict[torch.device, Tensor] = {}
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
        bits = None if self._master else _Bits(self._said(parameter, int(state[STEP])), self._table(parameter.device))
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
        if not self._elementwise or not kept[0].is_contiguous():
            drawn = None if bits is None else bits.of(begin, kept[0].shape)
            self._update_whole(gradient, *kept, step=step, bits=drawn)
            return
        flat = [gradient.reshape(-1), *(tensor.view(-1) for tensor in kept)]
        for start in range(0, kept[0].numel(), PIECE):
            piece = [tensor[start : start + PIECE] for tensor in flat]
            drawn = None if bits is None else bits.of(begin + start, piece[0].shape)
            self._update_piece(*piece, step=step, bits=drawn)

    def _update_whole(self, gradient: Tensor, weight: Tensor, *state: Tensor, step: Tensor, bits: Tensor | None) -> None:
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
        weight.copy_(wide if bits is None else round_stochastically_(wide, bits))

    def _update_piece(self, gradient: Tensor, weight: Tensor, *state: Tensor, step: Tensor, bits: Tensor | None) -> None:
        """The same for AdamW, in flat pieces: no copy is made anew, and its function is called without what surrounds it."""
        kept = state if self._master else (*state, weight)
        exact = [self._wide(number, tensor) for number, tensor in enumerate((gradient, *kept))]
        exact_gradient, *moments, wide = exact
        group = self.inner.param_groups[0]
        first, second = moments
        adamw(
            [wide],
            [exact_gradient],
            [first],
            [second],
            [],
            [step.to(weight.device, copy=True)],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if bits is not None:
            for moment, value in zip(state, moments, strict=True):
                moment.copy_(value)
        weight.copy_(wide if bits is None else round_stochastically_(wide, bits))

    def _wide(self, number: int, tensor: Tensor) -> Tensor:
        """A tensor of at most `PIECE` elements in float32: itself, or copied into memory that is used again."""
        if tensor.dtype == torch.float32:
            return tensor
        place = (tensor.device, number)
        if place not in self._scratch:
            self._scratch[place] = torch.empty(PIECE, dtype=torch.float32, device=tensor.device)
        return self._scratch[place][: tensor.numel()].copy_(tensor)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = random_table().to(device)
        return self._tables[device]

    def _said(self, parameter: Tensor, count: int) -> str:
        return f"{self._seed} {count} {self._names[parameter]}"


class _Bits:
    """The random bits of one update of one parameter, 16 for each of its elements.

    Those of each `PIECE` elements have a seed of their own: whoever has only a part of the parameter draws no more than that,
    and the same bits, on whatever device.

    Args:
        seed: of the update, as a text.
        table: of `random_table`, on the parameter's device.
    """

    def __init__(self, seed: str, table: Tensor) -> None:
        self._seed, self._table = seed, table

    def of(self, begin: int, shape: torch.Size) -> Tensor:
        """Those of the elements from `begin` on, in the parameter's order, of a shape: as `random_bits` gives them."""
        end = begin + shape.numel()
        found = [
            self._piece(number, max(0, begin - number * PIECE), min(PIECE, end - number * PIECE))
            for number in range(begin // PIECE, -(-end // PIECE))
        ]
        return (found[0] if len(found) == 1 else torch.cat(found)).view(shape)

    def _piece(self, number: int, begin: int, end: int) -> Tensor:
        drawn = hashlib.blake2b(f"{self._seed} {number}".encode(), digest_size=8).digest()
        return random_bits(self._table, begin, end, seed=(int.from_bytes(drawn[:4], "big"), int.from_bytes(drawn[4:], "big")))


def random_table() -> Tensor:
    """Random words that `random_bits` makes others of, one for two elements of a piece: `[(PIECE + 1) // 2]` int32."""
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(-(2**31), 2**31, ((PIECE + 1) // 2,), dtype=torch.int32, generator=drawn)


def random_bits(table: Tensor, begin: int, end: int, *, seed: tuple[int, int]) -> Tensor:
    """Numbers `begin` to `end` of the sequence of a seed: `[end - begin]` int32 from 0 to 2^16 - 1.

    Word i is `table[i] * (a | 1) + b`: of two words, each is as likely with each other as numbers that have nothing to do with
    one another, nearly so (Dietzfelbinger 1996, https://doi.org/10.1007/3-540-60922-9_46), but for their lower bits, onto which
    the upper ones are added. The upper halves follow on the lower ones. All processors of a machine share the few passes that
    this takes; torch's generators on a CPU, of better numbers than rounding wants, go from one to the next.

    Args:
        table: of `random_table`; the sequence is twice as long.
        seed: a and b, of 32 bits each.
    """
    half = len(table)
    first, last = (0, half) if begin < half < end else (begin % half, (end - 1) % half + 1)
    words = table[first:last].mul(_signed(seed[0] | 1)).add_(_signed(seed[1]))
    halves = torch.empty(2, len(words), dtype=torch.int32, device=table.device)
    torch.bitwise_right_shift(words, 16, out=halves[1]).bitwise_and_(_LOWER)
    torch.bitwise_xor(words, halves[1], out=halves[0]).bitwise_and_(_LOWER)
    if begin < half < end:
        return halves.view(-1)[begin:end]
    return halves[begin // half]


def _signed(word: int) -> int:
    """The int32 of the same 32 bits as a number without sign."""
    return word - 2**32 if word >= 2**31 else word


def round_stochastically_(tensor: Tensor, bits: Tensor) -> Tensor:
    """Float32 → bfloat16, in place: to one of the two neighbours, to the nearer one with the higher probability.

    A number between two neighbours goes to the one away from zero with the probability that is its way from the other: what is
    a bfloat16 number stays, and the expected value is the number itself. Infinities stay.

    Args:
        tensor: float32, contiguous.
        bits: as `random_bits` gives them, one for each element.

    Returns:
        The same tensor, still of float32.
    """
    tensor.view(torch.int32).add_(bits).bitwise_and_(_UPPER)
    return tensor

"""Dropout that is drawn for each row of a step's batch: the same masks however many processes share the rows.

Each draw takes one number from torch's default generator of the CPU, which all processes seed alike at the beginning of a
step and which then moves on alike in all of them; that number and a row's place among the rows of all processes seed the
generator that the row's mask comes from. Activation checkpointing, which puts the default generator back where it was, draws
the same masks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from attrs import define, evolve, field
from torch import Tensor, nn

from apr_train.model.acceleration import never_compiled
from apr_train.model.attention import AttentionBackend, Bidirectional, Documents, Mask, PreparedMask, Request
from apr_train.model.attention.backend import prepare_mask

NUMBERS = 2**62
"""How many different numbers a draw has; a row's place is added to one."""


def draw_by_row(model: nn.Module, rows: range) -> None:
    """Let every `nn.Dropout` of a model draw by row; attention's own dropout is `ByRow`'s.

    Args:
        model: its modules are exchanged in place; names of parameters stay.
        rows: which of all processes' rows the first axis of what they are given has.
    """
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if type(module) is nn.Dropout:
                setattr(parent, name, RowDropout(module.p, rows).train(module.training))


class RowDropout(nn.Dropout):
    """`nn.Dropout` with a mask for each row of `[rows, …]`; a first axis of rows · n has n entries of each row."""

    def __init__(self, p: float, rows: range) -> None:
        super().__init__(p)
        self.first, self.rows = rows.start, len(rows)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Dropout.forward`."""
        if not self.training or self.p == 0.0:
            return x
        if self.p == 1.0:
            return x * 0.0
        kept: Tensor = kept_by_row(x.detach(), 1.0 - self.p, self.first, self.rows)
        return x * kept * (1.0 / (1.0 - self.p))


# An operator of its own: a compiler leaves it whole, draws it once, and merges no two of them.
@torch.library.custom_op("apr_train::kept_by_row", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def kept_by_row(x: Tensor, keep: float, first: int, rows: int) -> Tensor:
    """Which elements of x stay, drawn row by row: bool, of x's shape.

    Args:
        x: `[rows · n, …]`; where its first axis is no multiple of the rows it counts as a single one.
        keep: probability of staying.
        first: number of the first row.
        rows: how many there are.
    """
    kept = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    number, generator = _draw(), torch.Generator(x.device)
    for row, part in enumerate(kept.chunk(rows) if x.shape[0] % rows == 0 else [kept], first):
        part.bernoulli_(keep, generator=generator.manual_seed(number + row))
    return kept


@kept_by_row.register_fake
def _(x: Tensor, keep: float, first: int, rows: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)


def _draw() -> int:
    return int(torch.randint(NUMBERS, ()))


@define
class ByRow:
    """An attention backend that is called for each row by itself where it drops weights, with the row's own generator state.

    So every kernel draws as it does, whether or not it could be told which numbers to use.
    """

    inner: AttentionBackend
    rows: range
    """Which of all processes' rows a batch has in training."""

    name: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.name = self.inner.name

    def supports(self, request: Request) -> str | None:
        """As the backend that is wrapped."""
        return self.inner.supports(request)

    def prepare(self, mask: Mask, query_length: int, key_length: int, device: torch.device) -> PreparedMask:
        """The mask as it is, for a row of it, and as the backend that is wrapped wants it, for all rows."""
        return PreparedMask(mask.kind, (mask, prepare_mask(self.inner, mask, query_length, key_length, device)))

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        *,
        dropout: float = 0.0,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """See `apr_train.model.attention.AttentionBackend`."""
        plain, prepared = mask.value if isinstance(mask, PreparedMask) else (mask, mask)
        given = {"scale": scale, "softcap": softcap}
        options: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None
        }  # as the models call a backend
        if dropout == 0.0:
            return self.inner(q, k, v, prepared, **options)
        call = partial(self.inner, dropout=dropout, **options)
        return _row_by_row(call, (q, k, v), [self._of_row(plain, row, q, k) for row in range(len(self.rows))], self.rows)

    def _of_row(self, mask: Mask, row: int, q: Tensor, k: Tensor) -> Mask:
        """The mask of one row of the batch, as the backend that is wrapped wants it."""
        here = slice(row, row + 1)
        if isinstance(mask, Documents):
            mask = evolve(mask, ids=mask.ids[here], lengths=None if mask.lengths is None else mask.lengths[here])
        elif isinstance(mask, Bidirectional) and mask.keep is not None:
            mask = evolve(mask, keep=mask.keep[here])
        return prepare_mask(self.inner, mask, q.shape[1], k.shape[1], q.device)


@never_compiled  # it seeds generators
def _row_by_row(call: Callable[..., Tensor], qkv: Sequence[Tensor], masks: Sequence[Mask], places: range) -> Tensor:
    number, found = _draw(), []
    for row, (place, mask) in enumerate(zip(places, masks, strict=True)):
        with _seeded(number + place, qkv[0].device):
            found.append(call(*(x[row : row + 1] for x in qkv), mask))
    return torch.cat(found)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from there with the device's default generator, and put that back afterwards."""
    generator = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index or 0]
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)

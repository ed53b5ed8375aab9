"""Tensors of which each process has a piece, put together on the first process, one at a time, as it asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from apr_train.model.sharding import cut, is_sharded
from apr_train.training.processes import ToldElsewhereError, Whole
from apr_train.training.words import Words

T = TypeVar("T")
_DONE, _FAILED = -1, -2
"""In place of the number of a tensor that is wanted."""
_SERVED = "served"
"""The store's count of how often a process has helped another one to write."""


class Gathering:
    """One writing of the first process, `number` of all, in which the others help.

    The first says through the store which tensor it wants next; each process that has a piece sends it, once, and nobody
    holds more than its pieces, the first process one whole tensor besides. Whoever waits for a question is not timed.
    """

    def __init__(
        self, tensors: Sequence[Tensor], pieces: Sequence[Tensor], *, words: Words, number: int, group: Any, owners: int
    ) -> None:
        """Begin.

        Args:
            tensors: the same ones on all processes, in the same order; they say who has which rows.
            pieces: what is here of each.
            words: the store.
            number: of this gathering, from 1 on.
            group: of the first `owners` processes, which exchange tensors on the CPU.
            owners: the processes that have all pieces of a tensor between them.
        """
        self.given_up = Event()
        self._tensors, self._pieces = tensors, pieces
        self._numbers = {id(tensor): place for place, tensor in enumerate(tensors)}
        self._words, self._number, self._group, self._owners = words, number, group, owners
        self._asked = 0

    def lead(self, function: Callable[[Whole], T]) -> T:
        """On the first process: call the function, which asks for tensors.

        Raises:
            Exception: what the function raises; the others then raise `ToldElsewhereError`.
        """
        try:
            made = function(self.whole)
        except BaseException:
            self._end(_FAILED)
            raise
        self._end(_DONE)
        return made

    def whole(self, tensor: Tensor) -> Tensor:
        """All of one of the tensors, on the first process; of one that is not sharded, what is here."""
        place = self._numbers[id(tensor)]
        piece = self._pieces[place]
        if not is_sharded(tensor) or self._owners == 1:
            return piece
        self._words.set(self._key(self._asked), place)
        self._asked += 1
        made = torch.empty(tensor.shape, dtype=piece.dtype)
        for rank, rows in enumerate(torch.split(made, cut(len(made), self._owners))):
            if rank == 0:
                rows.copy_(piece)
            elif rows.numel():
                dist.recv(rows, rank, group=self._group)
        return made

    def serve(self) -> None:
        """On the others: send the pieces that are asked for, until the first process has done.

        Raises:
            ToldElsewhereError: when it has failed, or is given up.
        """
        owner = self._words.rank < self._owners
        while (place := self._words.take(self._key(self._asked if owner else "end"), given_up=self.given_up)) >= 0:
            piece = self._pieces[place]
            if piece.numel():
                dist.send(piece.cpu().contiguous(), 0, group=self._group)
            self._asked += 1
        self._let_go()
        self._words.store.add(_SERVED, 1)
        if place == _FAILED:
            raise ToldElsewhereError

    def is_forgotten(self) -> bool:
        """On the first process, some time later: delete what was said, if all others have heard the end of it."""
        if self._words.store.add(_SERVED, 0) < self._number * (self._words.size - 1):
            return False
        for place in (*range(self._asked + 1), "end"):
            self._words.store.delete_key(self._key(place))
        return True

    def _let_go(self) -> None:
        """Nobody asks for a tensor any more, and copies may be as large as the model."""
        self._tensors = self._pieces = ()

    def _end(self, how: int) -> None:
        self._let_go()
        self._words.set(self._key(self._asked), how)
        self._words.set(self._key("end"), how)

    def _key(self, place: int | str) -> str:
        return f"write/{self._number}/{place}"

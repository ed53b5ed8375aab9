"""What is written while the loop goes on: copies of tensors, and a thread that writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor, nn

from apr_train.model.sharding import local
from apr_train.preflight.machine_rules import free_memory

ROOM = 2
"""A copy may take so many times less than the memory that is free: the steps that go on meanwhile need some, too."""


class Writing:
    """Something that a thread of its own writes, from the moment on at which this is made."""

    def __init__(self, function: Callable[[], object], given_up: Event | None = None) -> None:
        """Begin.

        Args:
            function: writes.
            given_up: what `function` looks at where it waits for other processes.
        """
        self.error: BaseException | None = None
        """What came of it, once it is over; None: all is written."""
        self._given_up = given_up or Event()
        self._thread = Thread(target=self._run, args=(function,), name="writing", daemon=True)  # a second signal ends at once
        self._thread.start()

    def _run(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # raised again by the loop, whatever it is
            self.error = error

    @property
    def is_over(self) -> bool:
        """Whether it is written, or has failed."""
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it is over, or so long, after which it is given up where it waits for another process."""
        self._thread.join(seconds)
        if not self.is_over:
            self._given_up.set()


def pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of each tensor the piece that is here; shares its memory."""
    return [local(tensor.detach()) for tensor in tensors]


def copied_pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    """`pieces` as they are now, in memory of the host; frozen parameters, which nothing changes, stay where they are."""
    copies: dict[Any, Tensor] = {}
    return [piece if _is_frozen(tensor) else _copy(piece, copies) for tensor, piece in _with_pieces(tensors)]


def bytes_to_copy(tensors: Iterable[Tensor]) -> int:
    """What `copied_pieces` takes."""
    return sum({_key(piece): piece.nbytes for tensor, piece in _with_pieces(tensors) if not _is_frozen(tensor)}.values())


def has_room(needed: int) -> bool:
    """Whether so many bytes can be taken from this machine for a while; where nobody can say, they can."""
    free = free_memory("cpu")
    return free is None or ROOM * needed <= free


def _with_pieces(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    known: Sequence[Tensor] = list(tensors)
    return list(zip(known, pieces(known), strict=True))


def _is_frozen(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _key(piece: Tensor) -> tuple[object, ...]:
    """The same for tensors over the same memory, such as an average that stands in for a weight."""
    return piece.device, piece.data_ptr() or id(piece), piece.dtype, piece.shape, piece.stride()


def _copy(piece: Tensor, copies: dict[Any, Tensor]) -> Tensor:
    key = _key(piece)
    if key not in copies:
        copies[key] = torch.empty(piece.shape, dtype=piece.dtype, device="cpu").copy_(piece)
    return copies[key]

"""Updates in the backward pass, a block at a time, so that the gradients of a model never all exist at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self, cast

import torch
from torch import Tensor, nn

from apr_train.model.protocol import LanguageModel
from apr_train.training.optimizer.make import Optimizers

_PIECE = 2**18
"""Elements of a narrow gradient whose norm is computed at a time: what a cache holds in float32."""


class BrokenGradientError(Exception):
    """A gradient that is not finite, before anything is updated with it.

    Args:
        names: of the parameters that have one.
        changed: whether others have been updated.
    """

    def __init__(self, names: Sequence[str], *, changed: bool) -> None:
        super().__init__(", ".join(names))
        self.names, self.changed = names, changed


class UpdatesInBackward:
    """A context for one backward pass: as soon as a block has all its gradients it is updated, and they are let go.

    The updates are those that the optimizer would take behind the pass, to the bit: no update changes what another gradient
    is computed from. Only what needs all gradients first cannot be had: a norm to clip by, a judgement of the step, a sum over
    several passes. A gradient that is not finite is found before its own block is updated, not before those behind it are; a
    GPU's host waits once a block to find it.

    Args:
        model: its blocks, and what is in none of them: embedding, head and last norm.
        optimizer: has all parameters that are trained.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizers | torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self.norms: dict[nn.Parameter, Tensor] = {}
        """The norms of the gradients that were there."""
        self._changed = False
        self._members: dict[nn.Parameter, list[nn.Parameter]] = {}
        for block in cast(LanguageModel, model).blocks:
            own = [item for item in block.parameters() if item.requires_grad and item not in self._members]
            self._members |= dict.fromkeys(own, own)
        self._missing = {id(own): len(own) for own in self._members.values()}

    def __enter__(self) -> Self:
        register = torch.Tensor.register_post_accumulate_grad_hook
        self._hooks = [register(item, self._reached) for item in self._members]  # type: ignore[no-untyped-call]  # torch's
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def _reached(self, parameter: Tensor) -> None:
        own = self._members[cast(nn.Parameter, parameter)]
        self._missing[id(own)] -= 1
        if not self._missing[id(own)]:
            self._update(own)

    def finish(self) -> Tensor:
        """Update what is left, behind the pass, and give the norm of all gradients: as `gradient_norm`, to the bit.

        Raises:
            BrokenGradientError: as the pass itself.
        """
        self._update(self._model.parameters())
        norms = [self.norms[item] for item in self._model.parameters() if item in self.norms]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def _update(self, parameters: Iterable[nn.Parameter]) -> None:
        """Update some parameters, whatever others have a gradient, and let their gradients go."""
        mine = {item: norm_of(item.grad) for item in parameters if item.grad is not None}
        if not mine:
            return
        self._require_finite(mine)
        self.norms |= mine
        others = [(item, item.grad) for item in self._model.parameters() if item.grad is not None and item not in mine]
        for item, _ in others:
            item.grad = None
        self._optimizer.step()
        self._changed = True
        for item in mine:
            item.grad = None
        for item, gradient in others:
            item.grad = gradient

    def _require_finite(self, norms: dict[nn.Parameter, Tensor]) -> None:
        together = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        if not math.isfinite(float(together)):
            broken = {item for item, norm in norms.items() if not math.isfinite(float(norm))} or set(norms)
            names = [name for name, item in self._model.named_parameters() if item in broken]
            raise BrokenGradientError(names, changed=self._changed)


def norm_of(gradient: Tensor) -> Tensor:
    """The L2 norm in float32 at least; of a narrow gradient a piece at a time, for torch on a CPU copies all that it widens."""
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    if dtype == gradient.dtype or gradient.device.type != "cpu":
        return cast(Tensor, torch.linalg.vector_norm(gradient, dtype=dtype))
    pieces = [torch.linalg.vector_norm(piece, dtype=dtype) for piece in torch.split(gradient.reshape(-1), _PIECE)]
    return cast(Tensor, torch.linalg.vector_norm(torch.stack(pieces)))

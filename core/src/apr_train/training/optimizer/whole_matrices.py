"""Updates of matrices that are sharded by an optimizer that needs the whole of each, as Muon does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from apr_train.model.sharding import gather_to, pieces_of, scatter_from


class WholeMatrices(torch.optim.Optimizer):
    """One of torch's optimizers for sharded matrices: one process gathers each with gradient and state, and updates it.

    As many matrices are under way at a time as there are pieces, the largest first, each on another process; then the pieces
    of the results go back. Between two steps a process has no more than its pieces.

    Torch's Muon on `DTensor`s would change the placement of a parameter in place, which torch refuses.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], kind: Callable[[Any], torch.optim.Optimizer], *, moments: Sequence[str]
    ) -> None:
        """Take over the groups.

        Args:
            groups: as torch's optimizers take them.
            kind: makes the optimizer that computes the updates, of groups as torch's optimizers take them.
            moments: what it calls the tensors of a parameter's state, all of the parameter's shape.
        """
        self.inner = kind([torch.zeros(1, 1)])  # a gathered matrix takes this one's place in turn
        self._moments = tuple(moments)
        super().__init__(groups, self.inner.defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure would want gradients; nobody has one
        """Update every matrix that has a gradient; every process has to ask at the same time."""
        for group in self.param_groups:
            self.inner.param_groups[0].update({key: value for key, value in group.items() if key != "params"})
            waiting = [parameter for parameter in group["params"] if parameter.grad is not None]
            waiting.sort(key=lambda parameter: -parameter.numel())
            pieces = pieces_of(waiting[0])[1] if waiting else 1
            for begin in range(0, len(waiting), pieces):
                self._update(waiting[begin : begin + pieces])

    def _update(self, parameters: Sequence[Tensor]) -> None:
        """Each of at most as many matrices as there are pieces, on the process of its number."""
        kept = [[parameter, *self._moments_of(parameter)] for parameter in parameters]
        mine: Sequence[Tensor] | None = None
        for place, parameter in enumerate(parameters):
            gradient = cast(Tensor, parameter.grad)
            mine = gather_to(place, [*kept[place], gradient]) or mine
        updated = None if mine is None else self._updated(mine)
        for place, tensors in enumerate(kept):
            scatter_from(place, updated, tensors)

    def _moments_of(self, parameter: Tensor) -> list[Tensor]:
        state = self.state[parameter]
        if not state:
            state.update({key: torch.zeros_like(parameter) for key in self._moments})
        return [state[key] for key in self._moments]

    def _updated(self, whole: Sequence[Tensor]) -> Sequence[Tensor]:
        """A matrix and its state after the update, from matrix, state and gradient."""
        matrix, *moments, matrix.grad = (tensor.contiguous() for tensor in whole)
        self.inner.param_groups[0]["params"] = [matrix]
        self.inner.state[matrix] = dict(zip(self._moments, moments, strict=True))
        self.inner.step()
        self.inner.state.clear()
        return [matrix, *moments]

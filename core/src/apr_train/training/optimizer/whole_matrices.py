"""Updates of matrices that are sharded by an optimizer that needs the whole of each, as Muon does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from apr_train.model.sharding import keep_piece, whole


class WholeMatrices(torch.optim.Optimizer):
    """One of torch's optimizers for sharded matrices: each is gathered, with gradient and state, updated, and cut again.

    Every process does so with every matrix, one after the other, and keeps its rows: all compute the same, so that the time
    of an update does not shrink with their number. Between two steps a process has no more than its pieces.

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
            self.inner.param_groups[0].update(group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad)

    def _update(self, parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state.update({key: torch.zeros_like(parameter) for key in self._moments})
        matrix, moments = whole(parameter.detach()), {key: whole(state[key]) for key in self._moments}
        matrix.grad = whole(gradient)
        self.inner.param_groups[0]["params"] = [matrix]
        self.inner.state[matrix] = dict(moments)
        self.inner.step()
        self.inner.state.clear()
        for tensor, values in ((parameter, matrix), *((state[key], moments[key]) for key in self._moments)):
            keep_piece(tensor, values)

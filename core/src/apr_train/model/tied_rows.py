"""The gradient of an embedding that is the head's matrix, too, without a second dense matrix for the rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apr_train.model.protocol import LanguageModel

_ATTRIBUTE = "tied_rows"


def add_rows_apart(model: nn.Module) -> None:
    """Let `rows_apart` do so for a model whose embedding is its head's matrix; leaves every other model as it is.

    For a process alone: the gradient of a matrix that is spread over several is summed before rows could be added. And for a
    CPU: to count the rows a GPU's host would have to wait.
    """
    head = cast(LanguageModel, model).head_weight
    for module in model.modules():
        plain = isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq
        if plain and module.weight is head and head.requires_grad:
            setattr(model, _ATTRIBUTE, _TiedRows(cast(nn.Embedding, module)))
            return


def rows_apart(model: nn.Module) -> AbstractContextManager[None]:
    """Inside go one forward and one backward pass; what they add to gradients is there behind it, to the bit as without."""
    tied = getattr(model, _ATTRIBUTE, None)
    return nullcontext() if tied is None else tied.apart()


class _TiedRows:
    """Looks tokens up in a matrix that autograd does not see, and adds the rows' gradients to the dense one of the head.

    Autograd would add a dense matrix that is zero but for the rows of the batch's tokens: of a vocabulary of 152,000 and
    a thousand tokens, a tenth of all gradients once more, made, read and freed. Torch's sparse gradients help less: added to
    a dense one they give a third (torch 2.13).
    """

    def __init__(self, module: nn.Embedding) -> None:
        self.module = module
        self._looked_up: list[tuple[Tensor, Tensor]] | None = None
        vars(module)["forward"] = self._embed  # as a compiled block's is

    def _embed(self, tokens: Tensor) -> Tensor:
        """`[batch, length]` → `[batch, length, hidden]`."""
        weight, padding = self.module.weight, self.module.padding_idx
        if self._looked_up is None or not torch.is_grad_enabled():
            return F.embedding(tokens, weight, padding)
        rows = F.embedding(tokens, weight.detach(), padding).requires_grad_()
        self._looked_up.append((tokens, rows))
        return rows.clone()  # a leaf would refuse to be changed in place

    @contextmanager
    def apart(self) -> Iterator[None]:
        """See `rows_apart`. Earlier gradients are taken off and added at the end, as autograd does: sums keep their order."""
        weight = self.module.weight
        earlier, weight.grad, self._looked_up = weight.grad, None, []
        try:
            yield
            for tokens, rows in self._looked_up:
                if rows.grad is not None:
                    self._add(tokens.reshape(-1), rows.grad.reshape(-1, weight.shape[1]))
        finally:
            self._looked_up = None
        if earlier is not None:
            weight.grad = earlier if weight.grad is None else earlier.add_(weight.grad)

    def _add(self, tokens: Tensor, gradient: Tensor) -> None:
        weight, padding = self.module.weight, self.module.padding_idx
        if padding is not None:
            gradient = gradient.masked_fill((tokens == padding)[:, None], 0)
        found, places = torch.unique(tokens, return_inverse=True)
        # what F.embedding goes back by, for the tokens that are there instead of the whole vocabulary
        sums = torch.ops.aten.embedding_dense_backward(gradient, places, len(found), -1, False)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, found, sums)

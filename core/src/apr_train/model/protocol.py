"""The protocol of a model that can be trained: the core's models satisfy it, and a family's own module must."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from apr_train.family.config import ModelConfig
from apr_train.model.attention import Mask
from apr_train.model.cache import KeyValueCache


@runtime_checkable
class LanguageModel(Protocol):
    """An `nn.Module` whose head is a matrix, so that the loss can compute logits in pieces.

    Its logits are cap · tanh(scale · (head_weight · head_input(hidden) + head_bias) / cap), computed by
    `apr_train.model.head.head_logits` and nothing else: a class says `logits = head_logits`, and what is its own goes into
    the five members of that formula.
    """

    @property
    def config(self) -> ModelConfig:
        """What the model was built from."""
        ...

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated blocks, for compilation, activation checkpointing and sharding."""
        ...

    @property
    def head_weight(self) -> Tensor:
        """`[vocab, hidden]`; the embedding matrix itself when tied."""
        ...

    @property
    def head_bias(self) -> Tensor | None:
        """`[vocab]`, or None."""
        ...

    @property
    def head_scale(self) -> float:
        """Factor on the logits; 1.0 where there is none."""
        ...

    @property
    def head_softcap(self) -> float | None:
        """c in c · tanh(logits / c), after the scale; None where there is no cap."""
        ...

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        mask: Mask,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        losses: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Tokens `[batch, length]` int64 → `[batch, length, hidden]`, after the last norm.

        A model with a loss of its own beside the cross entropy writes it into `losses`, when it gets one, under `aux_loss`:
        a scalar, the mean over the batch, without its factor. Training adds `config.router_aux_loss_coef` times that.
        """
        ...

    def head_input(self, hidden: Tensor) -> Tensor:
        """What stands between hidden states and the head matrix: `[..., hidden]` in and out."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` → `[..., vocab]`: `apr_train.model.head.head_logits`, as a method."""
        ...

    def initialize(self, generator: torch.Generator, names: Collection[str] | None = None) -> None:
        """Draw fresh values for all parameters, or for the named ones only, by `apr_train.model.initialize`.

        That fills a model that is sharded over several processes as it fills one that is not.
        """
        ...

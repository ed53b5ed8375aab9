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
    """An `nn.Module` whose head is a matrix, so that the loss can compute logits in pieces."""

    config: ModelConfig

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

    def hidden_states(
        self, tokens: Tensor, *, mask: Mask, positions: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Tokens `[batch, length]` int64 → `[batch, length, hidden]`, after the last norm."""
        ...

    def head_input(self, hidden: Tensor) -> Tensor:
        """What stands between hidden states and the head matrix: `[..., hidden]` in and out."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` → `[..., vocab]`."""
        ...

    def initialize(self, generator: torch.Generator, names: Collection[str] | None = None) -> None:
        """Draw fresh values for all parameters, or for the named ones only."""
        ...

"""Keys and values of the tokens seen so far, so that generation computes each of them once."""

from __future__ import annotations

import torch
from torch import Tensor

from apr_train.errors import ConfigError


class KeyValueCache:
    """Per layer, k and v `[batch, up to max_length, kv heads, head dim]`, allocated at the first append.

    Sliding layers keep all keys, too: their mask hides those before the window.
    """

    def __init__(self, num_layers: int, max_length: int) -> None:
        self.max_length = max_length
        self._pairs: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._lengths = [0] * num_layers

    @property
    def length(self) -> int:
        """Tokens that every layer has; during a forward the first layers are already ahead."""
        return min(self._lengths)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens' k and v `[batch, new, kv heads, head dim]`; give views of all so far.

        Raises:
            ConfigError: when `max_length` is exceeded.
        """
        start, end = self._lengths[layer], self._lengths[layer] + k.shape[1]
        if end > self.max_length:
            raise ConfigError("key-value cache is full", where="generation", expected=f"≤ {self.max_length} tokens", found=end)
        pair = self._pairs[layer] or (self._empty(k), self._empty(v))
        for stored, new in zip(pair, (k, v), strict=True):
            stored[:, start:end] = new
        self._pairs[layer], self._lengths[layer] = pair, end
        return pair[0][:, :end], pair[1][:, :end]

    def truncate(self, length: int) -> None:
        """Forget the tokens behind the first `length`."""
        self._lengths = [min(length, known) for known in self._lengths]

    def _empty(self, like: Tensor) -> Tensor:
        return torch.empty((like.shape[0], self.max_length, *like.shape[2:]), dtype=like.dtype, device=like.device)

"""Keys and values of the tokens seen so far, so that generation computes each of them once: of one text, or of several."""

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

    def of(self, layer: int) -> KeyValueCache:
        """What that layer's block is given: the whole."""
        return self

    def keys(self, new: int) -> int:
        """How many keys a layer gives back when it has got `new` more."""
        return self.length + new

    def computed(self, layer: int) -> tuple[Tensor, Tensor]:
        """That layer's k and v `[batch, length, kv heads, head dim]` so far.

        Raises:
            ConfigError: when there is none.
        """
        pair = self._pairs[layer]
        if pair is None:
            raise ConfigError("key-value cache is empty", where="generation", expected="a forward pass with it", found="none")
        return pair[0][:, : self.length], pair[1][:, : self.length]

    def truncate(self, length: int) -> None:
        """Forget the tokens behind the first `length`."""
        self._lengths = [min(length, known) for known in self._lengths]

    def _empty(self, like: Tensor) -> Tensor:
        return torch.empty((like.shape[0], self.max_length, *like.shape[2:]), dtype=like.dtype, device=like.device)


class LayerBuffers:
    """One layer's keys and values in a `FixedCache`: what its block is given, one token a row at a time."""

    def __init__(self, places: Tensor) -> None:
        self.rows, self.places = torch.arange(len(places), device=places.device), places
        self.k = self.v = torch.empty(0)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put each row's new k and v `[rows, 1, kv heads, head dim]` at its place; give the buffers, whole."""
        self.k.index_put_((self.rows, self.places), k[:, 0])
        self.v.index_put_((self.rows, self.places), v[:, 0])
        return self.k, self.v


class FixedCache:
    """Several texts' keys and values, each text in a row: no token changes the shape of anything.

    Per layer, k and v `[rows, max_length, kv heads, head dim]`, in which every row has a place of its own: rows come and go
    as texts end, and a compiled block serves every token. A text's prompt goes into its row through `begin`. What lies
    behind a row's place, `CausalAt(cache.places)` hides.
    """

    def __init__(self, num_layers: int, *, rows: int, max_length: int, device: torch.device) -> None:
        self.max_length = max_length
        self.places = torch.zeros(rows, dtype=torch.int64, device=device)
        """How many tokens each row has: `[rows]`."""
        self._layers = [LayerBuffers(self.places) for _ in range(num_layers)]

    @property
    def rows(self) -> int:
        """How many texts it holds."""
        return len(self.places)

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return int(self.places.max())

    def of(self, layer: int) -> LayerBuffers:
        """What that layer's block is given."""
        return self._layers[layer]

    def keys(self, new: int) -> int:
        """How many keys a layer gives back: all that there is room for."""
        return self.max_length

    def begin(self, row: int, text: KeyValueCache, *, of: int = 0, length: int | None = None) -> None:
        """Take over what was computed of a text; its tokens are those of the row from here on.

        Args:
            row: where it goes.
            text: has it.
            of: its place in the batch of that cache.
            length: how many tokens there are its own; None: all.

        Raises:
            ConfigError: for a text that is longer than a row.
        """
        length = text.length if length is None else length
        if length > self.max_length:
            expected = f"≤ {self.max_length} tokens"
            raise ConfigError("key-value cache is full", where="generation", expected=expected, found=length)
        for layer, buffers in enumerate(self._layers):
            pair = text.computed(layer)
            if not buffers.k.numel():
                # zeros, not what memory holds: a hidden value is multiplied by 0, and NaN · 0 is NaN
                buffers.k, buffers.v = (x.new_zeros(self.rows, self.max_length, *x.shape[2:]) for x in pair)
            for buffer, x in zip((buffers.k, buffers.v), pair, strict=True):
                buffer[row, :length] = x[of, :length]
        self.places[row] = length

    def advance(self) -> None:
        """Every row has got its token: the next ones go behind it; a row that is full, or has no text, stays where it is."""
        self.places.add_(1).clamp_(max=self.max_length - 1)


LayerCache = KeyValueCache | LayerBuffers
"""What a block is given; `append` is all that it asks of it."""

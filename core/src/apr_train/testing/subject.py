"""The model that the kit examines: one preset of a family, in float64, with the tokens that it is run on."""

from __future__ import annotations

from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.plugin import Family
from apr_train.family.rope_scaling import LongRopeScaling
from apr_train.model.attention import AttentionBackend, Bidirectional, Causal, Mask
from apr_train.testing.float64 import everything_in_float64
from apr_train.testing.models import real_model

LENGTH = 40
"""Tokens of a row, unless a window wants more or the positions are fewer."""
LONGEST = 160
"""Tokens of a row at most: a window that reaches further is not seen."""


@define
class Subject:
    """One preset's model, in float64 and in evaluation mode, with the tokens that it is run on."""

    family: Family
    config: ModelConfig
    seed: int = 0
    model: Any = field(init=False)
    """With eager attention."""

    def __attrs_post_init__(self) -> None:
        self.model = self.make()

    def make(self, attention: str | AttentionBackend = "eager") -> Any:
        """Another model with the same weights."""
        return real_model(self.family, self.config, attention=attention, seed=self.seed)

    @property
    def decodes(self) -> bool:
        """Whether a token may see those before it only."""
        return self.family.info.kind == "decoder"

    @property
    def windows(self) -> list[int]:
        """The windows of all layers that have one."""
        if not isinstance(self.config, DecoderConfig):
            return []
        found = (self.config.window(layer) for layer in range(self.config.num_hidden_layers))
        return [window for window in found if window is not None]

    @property
    def length(self) -> int:
        """Tokens of a row: beyond the widest window where that is possible."""
        wanted = max([LENGTH, *(window + 12 for window in self.windows if window + 12 <= LONGEST)])
        limit = self.config.usable_positions
        scaling = getattr(self.config, "rope_scaling", None)
        if isinstance(scaling, LongRopeScaling):  # beyond it, the length of a row decides on its frequencies
            limit = min(limit, scaling.original_max_position_embeddings)
        return min(wanted, limit)

    @property
    def pad(self) -> int:
        """The padding's id; -1 for a model that has none."""
        return int(getattr(self.config, "pad_token_id", -1))

    def tokens(self, rows: int = 2, *, seed: int = 0) -> Tensor:
        """`[rows, length]` ids, none of them the padding."""
        source = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, self.config.vocab_size, (rows, self.length), generator=source)
        return torch.where(ids == self.pad, (ids + 1) % self.config.vocab_size, ids)

    def mask(self, keep: Tensor | None = None) -> Mask:
        """The plain mask of the model's kind."""
        return Causal() if self.decodes else Bidirectional(keep)

    def hidden(self, tokens: Tensor, mask: Mask | None = None, **more: Any) -> Tensor:
        """Hidden states of tokens `[batch, length]`, without a gradient."""
        with torch.no_grad(), everything_in_float64():
            states: Tensor = self.model.hidden_states(tokens, mask=mask or self.mask(), **more)
        return states

    def logits(self, tokens: Tensor, mask: Mask | None = None, **more: Any) -> Tensor:
        """Logits of tokens `[batch, length]`, without a gradient."""
        hidden = self.hidden(tokens, mask, **more)
        with torch.no_grad(), everything_in_float64():
            logits: Tensor = self.model.logits(hidden)
        return logits

    def other(self, tokens: Tensor, place: int) -> Tensor:
        """The tokens with another one at `place`, which is no padding."""
        changed = tokens.clone()
        step = 1 + self.config.vocab_size // 3
        changed[:, place] = (changed[:, place] + step) % self.config.vocab_size
        again = (changed[:, place] == self.pad) | (changed[:, place] == tokens[:, place])
        changed[:, place] = torch.where(again, (changed[:, place] + 1) % self.config.vocab_size, changed[:, place])
        return changed

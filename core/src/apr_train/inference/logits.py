"""The logits of one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from apr_train.errors import ConfigError
from apr_train.inference.ready import Ready
from apr_train.model.attention.masks import Bidirectional, Causal
from apr_train.model.protocol import LanguageModel


@torch.no_grad()
def logits_of(ready: Ready, ids: Sequence[int]) -> Tensor:
    """Logits `[length, vocab]` of ids, in float32 on the CPU; of a decoder, row i is about the token behind i.

    Raises:
        ConfigError: no ids, more than the model has positions, or one outside its vocabulary.
    """
    positions, rows = ready.config.usable_positions, ready.config.vocab_size
    if not 0 < len(ids) <= positions:
        raise ConfigError(
            "a text of this length cannot be read", where=ready.path, expected=f"1 to {positions} tokens", found=len(ids)
        )
    if outside := [index for index in ids if not 0 <= index < rows]:
        raise ConfigError("an id outside the vocabulary", where=ready.path, expected=f"0 to {rows - 1}", found=outside[0])
    model, tokens = cast(LanguageModel, ready.model), torch.tensor([list(ids)], device=ready.device)
    mask = Causal() if ready.family.info.kind == "decoder" else Bidirectional(None)
    with ready.precision.context(ready.device):
        logits = model.logits(model.hidden_states(tokens, mask=mask))
    return logits[0].float().cpu()

"""A short greedy continuation, to see what a model says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import nn

from apr_train.model.acceleration import uncompiled
from apr_train.model.attention.masks import Causal
from apr_train.model.cache import KeyValueCache
from apr_train.model.device import Precision
from apr_train.model.protocol import LanguageModel

DEFAULT_PROMPT = 'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""'


@torch.no_grad()
def greedy(model: nn.Module, prompt: Sequence[int], *, length: int, ends: Collection[int], precision: Precision) -> list[int]:
    """The most likely tokens after the ids of a prompt, one after the other; a decoder with a key-value cache.

    At most `length`, and as many as the model has positions for (of a prompt that is too long, its end); nothing from the
    first of `ends` on.
    """
    device = next(model.parameters()).device
    language_model = cast(LanguageModel, model)
    positions = language_model.config.usable_positions
    length = min(length, positions - 1)
    tokens = torch.tensor([list(prompt[length - positions :])], device=device)
    training = model.training
    model.eval()
    try:
        with precision.context(device), uncompiled():
            return _continue(language_model, tokens, length, ends)
    finally:
        model.train(training)


def _continue(model: LanguageModel, tokens: torch.Tensor, length: int, ends: Collection[int]) -> list[int]:
    cache = KeyValueCache(model.config.num_hidden_layers, max_length=tokens.shape[1] + length)
    made: list[int] = []
    for _ in range(length):
        hidden = model.hidden_states(tokens, mask=Causal(offset=cache.length), cache=cache)
        index = int(model.logits(hidden[:, -1]).argmax(-1))
        if index in ends:
            break
        made.append(index)
        tokens = torch.tensor([[index]], device=tokens.device)
    return made

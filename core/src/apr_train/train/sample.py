"""A short greedy continuation, to see what a model says."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import nn

from apr_train.attention.masks import Causal
from apr_train.nn.cache import KeyValueCache
from apr_train.nn.protocol import LanguageModel
from apr_train.train.acceleration import uncompiled
from apr_train.train.precision import Precision

DEFAULT_PROMPT = 'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""'


class TextTokenizer(Protocol):
    """Text to ids and back."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        ...


@torch.no_grad()
def greedy(model: nn.Module, tokenizer: TextTokenizer, prompt: str, *, length: int, precision: Precision) -> str:
    """The `length` most likely tokens after `prompt`, one after the other; a decoder with a key-value cache."""
    device = next(model.parameters()).device
    language_model = cast(LanguageModel, model)
    room = language_model.config.usable_positions - length
    ids = tokenizer.encode(prompt)[-max(1, room) :]
    training = model.training
    model.eval()
    try:
        with precision.context(device), uncompiled():
            made = _continue(language_model, torch.tensor([ids], device=device), length)
    finally:
        model.train(training)
    return tokenizer.decode(made)


def _continue(model: LanguageModel, tokens: torch.Tensor, length: int) -> list[int]:
    cache = KeyValueCache(model.config.num_hidden_layers, max_length=tokens.shape[1] + length)
    made: list[int] = []
    for _ in range(length):
        hidden = model.hidden_states(tokens, mask=Causal(offset=cache.length), cache=cache)
        made.append(int(model.logits(hidden[:, -1]).argmax(-1)))
        tokens = torch.tensor([made[-1:]], device=tokens.device)
    return made

"""Generation: a decoder's tokens one after the other, each computed once, with a key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from apr_train.errors import RunError
from apr_train.model.attention.masks import Causal
from apr_train.model.cache import KeyValueCache
from apr_train.model.device import Precision
from apr_train.model.protocol import LanguageModel


def generate_tokens(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    length: int,
    choose: Callable[[Tensor], int],
    precision: Precision,
    device: torch.device,
    cache: KeyValueCache | None = None,
) -> Iterator[int]:
    """Yield the `length` tokens after `prompt`; the caller stops taking them where the text ends.

    Args:
        model: a decoder on `device`.
        prompt: at least one id; prompt and `length` together fit the model's positions.
        length: how many tokens come.
        choose: the next token from its logits `[vocab]`, on the model's device.
        precision: the arithmetic of each forward pass.
        device: the model's.
        cache: has the first tokens of `prompt`, not all of them, and room for the rest; None: nothing is computed yet.
    """
    if cache is None:
        cache = KeyValueCache(model.config.num_hidden_layers, max_length=len(prompt) + length)
    ids = prompt[cache.length :]
    for _ in range(length):
        with precision.context(device):
            logits = next_logits(model, torch.tensor([list(ids)], device=device), cache)
        index = choose(logits)
        yield index
        ids = [index]


@torch.no_grad()
def next_logits(model: LanguageModel, tokens: Tensor, cache: KeyValueCache) -> Tensor:
    """Logits `[vocab]` of the token after `tokens` `[1, new]`, which come after what the cache holds and are added to it."""
    hidden = model.hidden_states(tokens, mask=Causal(offset=cache.length), cache=cache)
    return model.logits(hidden[0, -1])


def check_logits(logits: Tensor, *, where: str) -> None:
    """Refuse logits that make no probabilities.

    Raises:
        RunError: for a NaN or +∞ among them, or -∞ alone.
    """
    if not bool(logits.max().isfinite()):  # the largest of numbers with a NaN among them is NaN
        raise RunError("the model's output is not a number", where=where, hint="Are its weights? See validate --data.")

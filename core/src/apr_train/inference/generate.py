"""A decoder continues a text, token by token, with a key/value cache; the text comes as soon as it is certain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from attrs import Factory, frozen
from torch import Tensor

from apr_train.data.prompt import ending_ids, ids_of_prompt
from apr_train.errors import ConfigError
from apr_train.inference.ready import Ready
from apr_train.inference.sampling import Sampler, Sampling
from apr_train.inference.text import StopStrings, TextStream
from apr_train.model.attention.masks import Causal
from apr_train.model.cache import KeyValueCache
from apr_train.model.device import default_precision as training_precision
from apr_train.model.protocol import LanguageModel

DEFAULT_LENGTH = 256
"""Tokens at most, where the user does not say."""


@frozen(kw_only=True)
class Continuation:
    """What a model wrote after a prompt."""

    text: str
    """Without the prompt and without the stop string."""
    tokens: tuple[int, ...]
    """Every token that was made, the end-of-text token included."""
    prompt_tokens: int
    stopped_by: str
    """`end of text`, `stop string`, `condition` or `length`."""


@frozen(kw_only=True)
class Ends:
    """When to stop."""

    max_tokens: int | None = None
    """None: `DEFAULT_LENGTH`, or as many as the positions allow."""
    stop: tuple[str, ...] = ()
    until: Callable[[str], bool] | None = None
    """Asked with all text so far after each piece; True ends it."""
    tokens: frozenset[int] = Factory(frozenset)
    """Ids that end the text."""


def continue_text(
    ready: Ready, prompt: str, *, sampling: Sampling, ends: Ends, emit: Callable[[str], None] | None = None
) -> Continuation:
    """Write on from `prompt`; `emit` gets the text piece by piece.

    Raises:
        DataError: for an empty prompt, or one that is no Unicode text.
        ConfigError: when prompt and tokens do not fit the model's positions.
        RunError: when the model's output is not a number.
    """
    ids = ids_of_prompt(ready.tokenizer, prompt)
    length = room(ready, len(ids), ends.max_tokens)
    writer = _Writer(TextStream(ready.tokenizer), StopStrings(ends.stop), ends, emit)
    made: list[int] = []
    stopped_by = "length"
    for index in made_tokens(ready, ids, length, Sampler(sampling)):
        made.append(index)
        if index in ends.tokens:
            stopped_by = "end of text"
            break
        if writer.push(index):
            stopped_by = "stop string" if writer.stops.found is not None else "condition"
            break
    writer.finish()
    return Continuation(text=writer.text, tokens=tuple(made), prompt_tokens=len(ids), stopped_by=stopped_by)


class _Writer:
    """From ids to the text that is given out."""

    def __init__(self, stream: TextStream, stops: StopStrings, ends: Ends, emit: Callable[[str], None] | None) -> None:
        self.stops, self.text = stops, ""
        self._stream, self._ends, self._emit = stream, ends, emit

    def push(self, index: int) -> bool:
        """Take one more token; True: it is enough."""
        self._give(self.stops.push(self._stream.push(index)))
        return self.stops.found is not None or (self._ends.until is not None and self._ends.until(self.text))

    def finish(self) -> None:
        """Give out what was held back."""
        self._give(self.stops.push(self._stream.finish()))
        self._give(self.stops.finish())

    def _give(self, piece: str) -> None:
        self.text += piece
        if piece and self._emit is not None:
            self._emit(piece)


def made_tokens(ready: Ready, ids: Sequence[int], length: int, sampler: Sampler) -> Iterator[int]:
    """At most `length` tokens after `ids`, each computed once: a cache keeps what came before."""
    cache = KeyValueCache(ready.config.num_hidden_layers, max_length=len(ids) + length)
    for _ in range(length):
        index = sampler.choose(next_logits(ready, ids, cache))
        yield index
        ids = [index]


@torch.no_grad()
def next_logits(ready: Ready, ids: Sequence[int], cache: KeyValueCache) -> Tensor:
    """Logits `[vocab]` of the token after `ids`, which come after what the cache holds and are added to it."""
    model = cast(LanguageModel, ready.model)
    tokens = torch.tensor([list(ids)], device=ready.device)
    with ready.precision.context(ready.device):
        hidden = model.hidden_states(tokens, mask=Causal(offset=cache.length), cache=cache)
        return model.logits(hidden[0, -1])


def room(ready: Ready, prompt_tokens: int, asked: int | None) -> int:
    """How many tokens may come.

    Raises:
        ConfigError: when they do not fit the model's positions.
    """
    positions = ready.config.usable_positions
    free = positions - prompt_tokens
    if free < 1 or (asked is not None and asked > free):
        wanted = f"{prompt_tokens} of the prompt" + (f" and {asked} to come" if asked is not None else ", none is left")
        raise ConfigError(
            "more tokens than the model has positions",
            where="--prompt" if free < 1 else "--max-tokens",
            expected=f"at most {positions} in all",
            found=wanted,
            hint="Shorten the prompt." if free < 1 else f"--max-tokens {free} is the most here.",
        )
    return min(DEFAULT_LENGTH, free) if asked is None else asked


def default_precision(device: torch.device) -> str:
    """float32 on a CPU; bfloat16 weights where CUDA multiplies them natively: every token reads all weights once.

    Not autocast, training's default: it would convert all weights for every token.
    """
    return "bf16-weights" if device.type == "cuda" and training_precision(device) == "bf16" else "fp32"


def ends_of_text(ready: Ready) -> frozenset[int]:
    """The ids that end a text."""
    return ending_ids(ready.tokenizer, ready.header.config)

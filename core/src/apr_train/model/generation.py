"""Generation: a decoder's tokens one after the other, each computed once, with a key/value cache; of one text or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import NamedTuple, cast

import torch
from attrs import frozen
from torch import Tensor

from apr_train.errors import RunError
from apr_train.model.acceleration import uncompiled
from apr_train.model.attention.masks import Causal, CausalAt
from apr_train.model.cache import FixedCache, KeyValueCache
from apr_train.model.decoder import Decoder
from apr_train.model.decoding import fixed_length
from apr_train.model.device import Precision
from apr_train.model.protocol import LanguageModel

READ_TOGETHER = 4096
"""Tokens of prompts, with what pads them, that are read at a time, at most."""


def generate_tokens(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    length: int,
    choose: Callable[[Tensor], int],
    precision: Precision,
    device: torch.device,
    cache: KeyValueCache | None = None,
    compiled: bool = False,
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
        compiled: whether the model went through `decoding.compile_steps`; the prompt is read as the model is written.
    """
    if cache is None:
        cache = KeyValueCache(model.config.num_hidden_layers, max_length=len(prompt) + length)
    ids = prompt[cache.length :]
    step: FixedCache | None = None
    for _ in range(length):
        with precision.context(device):
            if step is None:
                with uncompiled() if compiled else nullcontext():
                    logits = next_logits(model, torch.tensor([list(ids)], device=device), cache)
            else:
                logits = next_of_rows(cast(Decoder, model), torch.tensor(ids, device=device), step)[0]
        index = choose(logits)
        yield index
        ids = [index]
        if compiled and step is None:
            step = _alone(cache, fixed_length(len(prompt) + length), model.config.num_hidden_layers, device)


def _alone(text: KeyValueCache, length: int, num_layers: int, device: torch.device) -> FixedCache:
    cache = FixedCache(num_layers, rows=1, max_length=length, device=device)
    cache.begin(0, text)
    return cache


@torch.no_grad()
def next_logits(model: LanguageModel, tokens: Tensor, cache: KeyValueCache) -> Tensor:
    """Logits `[vocab]` of the token after `tokens` `[1, new]`, which come after what the cache holds and are added to it."""
    hidden = model.hidden_states(tokens, mask=Causal(offset=cache.length), cache=cache)
    return model.logits(hidden[0, -1])


@torch.no_grad()
def next_of_rows(model: Decoder, tokens: Tensor, cache: FixedCache) -> Tensor:
    """Logits `[rows, vocab]` of the tokens after `tokens` `[rows]`, each of which goes into its own row of the cache.

    The model's texts can stand in rows: `decoding.why_not_in_rows`.
    """
    places = cache.places
    hidden = model.hidden_states(tokens[:, None], mask=CausalAt(places), positions=places[:, None], cache=cache)
    logits = model.logits(hidden[:, 0])
    cache.advance()
    return logits


@frozen(kw_only=True)
class Asked:
    """A text that shall go on."""

    prompt: Sequence[int]
    """At least one id."""
    length: int
    """Tokens at most."""
    take: Callable[[int], bool]
    """Is given each token; whether the text goes on after it."""
    begin: Callable[[], KeyValueCache] | None = None
    """Gives a cache that has the first tokens of `prompt`, not all, and room for the rest; None: nothing is computed yet."""


def generate_together(
    model: Decoder,
    texts: Sequence[Asked],
    *,
    rows: int,
    choose: Callable[[Tensor], list[int]],
    precision: Precision,
    device: torch.device,
) -> None:
    """Let up to `rows` texts go on at a time: the weights are read once for a token of each; the next begins where one ends.

    A text gets what it would get alone, but for the rounding of a product of several rows.

    Args:
        model: one whose texts can stand in rows: `decoding.why_not_in_rows`.
        texts: begun in this order.
        rows: how many at a time, at most.
        choose: the next tokens from logits `[n, vocab]`, on the model's device.
        precision: the arithmetic of each forward pass.
        device: the model's.
    """
    if texts:
        _Rows(model, texts, rows=min(rows, len(texts)), choose=choose, precision=precision, device=device).run()


class _Rows:
    """Texts that go on together, and those that wait for a row."""

    def __init__(
        self,
        model: Decoder,
        texts: Sequence[Asked],
        *,
        rows: int,
        choose: Callable[[Tensor], list[int]],
        precision: Precision,
        device: torch.device,
    ) -> None:
        self._model, self._choose, self._precision, self._device = model, choose, precision, device
        self._waiting = iter(texts)
        room = max(len(text.prompt) + text.length for text in texts)
        self._layers = model.config.num_hidden_layers
        self._cache = FixedCache(self._layers, rows=rows, max_length=room, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)  # the last one of each row
        self._under_way: dict[int, tuple[Asked, int]] = {}  # row → its text, and how many tokens that has got

    def run(self) -> None:
        """Until no text is left."""
        self._fill(list(range(self._cache.rows)))
        while self._under_way:
            with self._precision.context(self._device):
                logits = next_of_rows(self._model, self._tokens, self._cache)
            rows = sorted(self._under_way)
            going = dict(self._under_way)
            self._under_way = {}
            for row, index in zip(rows, self._choose(logits[rows]), strict=True):
                text, made = going[row]
                self._take(row, text, index, made + 1)
            self._fill([row for row in rows if row not in self._under_way])

    def _fill(self, free: list[int]) -> None:
        """Put the next texts that want more than one token into rows."""
        while free and (texts := list(islice(self._waiting, len(free)))):
            for row, text, read in zip(list(free), texts, self._read(texts), strict=False):
                if self._take(row, text, self._choose(read.logits[None])[0], 1):
                    self._cache.begin(row, read.cache, of=read.row, length=len(text.prompt))
                    free.remove(row)

    def _take(self, row: int, text: Asked, index: int, made: int) -> bool:
        """Hand a text its next token; whether it wants another one, and so has the row."""
        if not text.take(index) or made == text.length:
            return False
        self._tokens[row] = index
        self._under_way[row] = (text, made)
        return True

    def _read(self, texts: Sequence[Asked]) -> Iterator[_Read]:
        """Read prompts: together where nothing is computed of any, and padding does not make them too many."""
        longest = max(len(text.prompt) for text in texts)
        if len(texts) > 1 and all(text.begin is None for text in texts) and len(texts) * longest <= READ_TOGETHER:
            yield from self._read_together(texts, longest)
            return
        for text in texts:
            length = len(text.prompt)
            cache = KeyValueCache(self._layers, length) if text.begin is None else text.begin()
            rest = torch.tensor([list(text.prompt[cache.length :])], device=self._device)
            with self._precision.context(self._device):
                logits = next_logits(self._model, rest, cache)
            yield _Read(logits, cache, 0)

    @torch.no_grad()
    def _read_together(self, texts: Sequence[Asked], longest: int) -> Iterator[_Read]:
        """What pads a prompt stands behind it, where none of its tokens looks."""
        ids = torch.tensor([[*text.prompt, *[0] * (longest - len(text.prompt))] for text in texts], device=self._device)
        last = torch.tensor([len(text.prompt) - 1 for text in texts], device=self._device)
        cache = KeyValueCache(self._layers, longest)
        with self._precision.context(self._device):
            hidden = self._model.hidden_states(ids, mask=Causal(), cache=cache)
            logits = self._model.logits(hidden[torch.arange(len(texts), device=self._device), last])
        yield from (_Read(line, cache, row) for row, line in enumerate(logits))


class _Read(NamedTuple):
    """A prompt that was read."""

    logits: Tensor
    """`[vocab]`, of the token behind it."""
    cache: KeyValueCache
    row: int
    """Where it stands in the cache's batch."""


def check_logits(logits: Tensor, *, where: str) -> None:
    """Refuse logits that make no probabilities.

    Raises:
        RunError: for a NaN or +∞ among them, or -∞ alone.
    """
    if not bool(logits.amax(-1).isfinite().all()):  # the largest of numbers with a NaN among them is NaN
        raise RunError("the model's output is not a number", where=where, hint="Are its weights? See validate --data.")

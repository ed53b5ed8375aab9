"""A decoder continues a text, token by token, with a key/value cache; the text comes as soon as it is certain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import attrs
import torch
from attrs import Factory, frozen
from torch import Tensor

from apr_train.data.special_tokens import ending_ids, ids_of_prompt
from apr_train.errors import ConfigError
from apr_train.inference.ready import Ready
from apr_train.inference.text import StopStrings, TextStream
from apr_train.model.decoder import Decoder
from apr_train.model.decoding import compile_steps, pays, why_not_compiled
from apr_train.model.device import default_precision
from apr_train.model.generation import check_logits, generate_tokens
from apr_train.model.protocol import LanguageModel
from apr_train.run.events import Say
from apr_train.training.examinee import Examinee


@frozen(kw_only=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        ConfigError: for a value out of range, or a cut of the distribution without a draw from it.
    """

    temperature: float = 0.0
    """0: the most likely token; above: logits are divided by it."""
    top_k: int | None = None
    """Draw among the most likely `top_k` tokens only."""
    top_p: float | None = None
    """Draw among the smallest set of most likely tokens whose probabilities reach `top_p` (Holtzman et al. 2019)."""
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            _refuse("--temperature", "0 or more, finite", self.temperature)
        if self.top_k is not None and self.top_k < 1:
            _refuse("--top-k", "at least 1", self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            _refuse("--top-p", "above 0, at most 1", self.top_p)
        if not 0 <= self.seed < 1 << 63:
            _refuse("--seed", "0 to 2⁶³ − 1", self.seed)
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            raise ConfigError(
                "--top-k and --top-p cut what is drawn from, and temperature 0 draws nothing",
                where="--temperature",
                expected="more than 0",
                found=0,
                hint="Add --temperature 0.8, say.",
            )


def _refuse(where: str, expected: str, found: object) -> None:
    raise ConfigError("out of range", where=where, expected=expected, found=found)


class Sampler:
    """Chooses tokens one after the other; the same seed gives the same tokens for the same logits."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        # On the CPU whatever the model's device: the same seed then means the same draws everywhere.
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token from logits `[vocab]`.

        Raises:
            RunError: when they hold a NaN or +∞.
        """
        check_logits(logits, where="generation")
        if self._sampling.temperature == 0:
            return int(logits.argmax(-1))
        probabilities = filtered(logits, self._sampling).softmax(-1).cpu()
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits `[vocab]` in float64, the largest moved to 0, after temperature, top-k and top-p; what is cut off is -inf."""
    wide = logits.double()  # a float32 quotient would overflow, and a tiny temperature be 0
    scores = (wide - wide.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.numel():
        least = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = scores.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        outside = (before >= sampling.top_p).index_fill(0, torch.zeros(1, dtype=torch.int64, device=scores.device), False)
        scores = scores.masked_fill(torch.zeros_like(outside).scatter(0, order, outside), -torch.inf)
    return scores


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
    ready: Ready,
    prompt: str,
    *,
    sampling: Sampling,
    ends: Ends,
    emit: Callable[[str], None] | None = None,
    parse_special: bool = True,
) -> Continuation:
    """Write on from `prompt`; `emit` gets the text piece by piece. `parse_special` is that of `ids_of_prompt`.

    Raises:
        DataError: for an empty prompt, or one that is no Unicode text.
        ConfigError: when prompt and tokens do not fit the model's positions.
        RunError: when the model's output is not a number.
    """
    ids = ids_of_prompt(ready.tokenizer, prompt, parse_special=parse_special)
    return continue_ids(ready, ids, sampling=sampling, ends=ends, emit=emit)


def continue_ids(
    ready: Ready, ids: Sequence[int], *, sampling: Sampling, ends: Ends, emit: Callable[[str], None] | None = None
) -> Continuation:
    """Write on from a prompt that is ids already, at least one; `emit` gets the text piece by piece.

    Raises:
        ConfigError: when prompt and tokens do not fit the model's positions.
        RunError: when the model's output is not a number.
    """
    length = room(ready, len(ids), ends.max_tokens)
    writer = _Writer(TextStream(ready.tokenizer), StopStrings(ends.stop), ends, emit)
    made: list[int] = []
    stopped_by = "length"
    tokens = generate_tokens(
        cast(LanguageModel, ready.model),
        ids,
        length=length,
        choose=Sampler(sampling).choose,
        precision=ready.precision,
        device=ready.device,
        compiled=ready.compiled,
    )
    for index in tokens:
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


def writing_precision(device: torch.device) -> str:
    """float32 on a CPU; bfloat16 weights where CUDA multiplies them natively: every token reads all weights once.

    Not autocast, training's default: it would convert all weights for every token.
    """
    return "bf16-weights" if device.type == "cuda" and default_precision(device) == "bf16" else "fp32"


def for_writing(ready: Ready, *, tokens: int, compile: bool | None, say: Say) -> Ready:
    """The model with its step for one token compiled, where that is asked for, or pays.

    Args:
        ready: a decoder.
        tokens: how many shall be written, at most.
        compile: True: compile if that can be; False: leave it as it is written; None: compile if so many tokens make up for it.
        say: told what was decided, once.
    """
    if compile is False or (compile is None and not pays(ready.model, tokens)):
        return ready
    reason = why_not_compiled(ready.model, ready.precision, ready.device)
    if reason is not None:
        if compile or ready.device.type == "cpu":
            say(f"decoding is not compiled: {reason}")
        return ready
    compile_steps(cast(Decoder, ready.model))
    say(
        "decoding is compiled"
        + ("" if compile else f": {tokens} tokens of this model may pay for it (--no-compile: it is not)")
    )
    return attrs.evolve(ready, compiled=True)


def ends_of_text(ready: Ready) -> frozenset[int]:
    """The ids that end a text."""
    return ending_ids(ready.tokenizer, ready.header.config)


def examinee_of(ready: Ready) -> Examinee:
    """The model as evaluations of training know one."""
    return Examinee(
        model=cast(LanguageModel, ready.model),
        tokenizer=ready.tokenizer,
        positions=ready.config.usable_positions,
        precision=ready.precision,
        device=ready.device,
        ends=ends_of_text(ready),
    )

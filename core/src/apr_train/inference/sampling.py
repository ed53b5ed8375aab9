"""From logits to the next token: greedy, or drawn after temperature, top-k and top-p in that order (as transformers does)."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from apr_train.errors import ConfigError, RunError


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


def check_logits(logits: Tensor, *, where: str) -> None:
    """Refuse logits that make no probabilities.

    Raises:
        RunError: for a NaN or +∞ among them, or -∞ alone.
    """
    if not bool(logits.max().isfinite()):  # the largest of numbers with a NaN among them is NaN
        raise RunError("the model's output is not a number", where=where, hint="Are its weights? See validate --data.")


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

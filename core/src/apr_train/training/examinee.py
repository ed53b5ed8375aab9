"""A model that is asked to write: in a run, or on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor, nn

from apr_train.data.tokenizer import Tokenizer
from apr_train.model.acceleration import uncompiled
from apr_train.model.cache import KeyValueCache
from apr_train.model.device import Precision
from apr_train.model.generation import check_logits, generate_tokens
from apr_train.model.protocol import LanguageModel
from apr_train.model.sharding import release

Stop = Literal["end of text", "condition", "length"]
UNFINISHED = "\ufffd"
"""What a character becomes while a part of its bytes is missing."""


@frozen(kw_only=True)
class Written:
    """What a model wrote."""

    text: str
    stopped_by: Stop


@frozen(kw_only=True)
class Examinee:
    """A decoder in evaluation mode, and what is needed to let it write."""

    model: LanguageModel = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    positions: int
    """Tokens of a text, at most."""
    precision: Precision
    device: torch.device
    ends: frozenset[int]
    """Ids that end a text."""

    def write(
        self,
        prompt: Sequence[int],
        *,
        length: int,
        ends: frozenset[int] = frozenset(),
        until: Callable[[str], bool] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Written:
        """The most likely tokens after a prompt, one after the other.

        Args:
            prompt: at least one id; with `length`, at most `positions`.
            length: tokens at most.
            ends: further ids that end the text.
            until: asked with all text so far after each token; True ends it.
            cache: as `generate_tokens` takes it.

        Raises:
            RunError: when the model's output is not a number.
        """
        made: list[int] = []
        tokens = generate_tokens(
            self.model, prompt, length=length, choose=_most_likely, precision=self.precision, device=self.device, cache=cache
        )
        for index in tokens:
            if index in self.ends or index in ends:
                return Written(text=self._text(made), stopped_by="end of text")
            made.append(index)
            if until is not None and until(self._text(made).rstrip(UNFINISHED)):
                return Written(text=self._text(made), stopped_by="condition")
        return Written(text=self._text(made), stopped_by="length")

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special=True)


def _most_likely(logits: Tensor) -> int:
    check_logits(logits, where="evaluation")
    return int(logits.argmax(-1))


@contextmanager
def examined(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, uncompiled and without gradients; the model's mode afterwards is that before."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), uncompiled():
            yield
    finally:
        release(model)
        model.train(training)

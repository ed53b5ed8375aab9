"""Several texts that a model is asked to write, a token of each for one reading of its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from attrs import field, frozen
from torch import Tensor

from apr_train.model.cache import KeyValueCache
from apr_train.model.decoder import Decoder
from apr_train.model.decoding import why_not_in_rows
from apr_train.model.generation import Asked, check_logits, generate_together
from apr_train.training.examinee import UNFINISHED, Examinee, Stop, Written

ROWS = 16
"""Texts at a time: their product with a matrix still takes little more than reading it."""


@frozen(kw_only=True)
class Start:
    """A text to be written on; its fields are the parameters of `Examinee.write`."""

    prompt: Sequence[int] = field(repr=False)
    length: int
    ends: frozenset[int] = frozenset()
    until: Callable[[str], bool] | None = None
    begin: Callable[[], KeyValueCache] | None = None
    """Gives `cache`, when it is the text's turn."""


def write_together(
    examinee: Examinee, starts: Sequence[Start], *, done: Callable[[int], None] | None = None
) -> tuple[Written, ...]:
    """What `Examinee.write` gives for each; `done` is told of each. A model that takes no rows writes one after the other.

    Raises:
        RunError: when the model's output is not a number.
    """
    if not isinstance(examinee.model, Decoder) or why_not_in_rows(examinee.model) is not None:
        return tuple(_alone(examinee, start, done) for start in starts)
    texts = [_Text(examinee, start, done) for start in starts]
    asked = [Asked(prompt=x.start.prompt, length=x.start.length, take=x.take, begin=x.start.begin) for x in texts]
    generate_together(
        examinee.model, asked, rows=ROWS, choose=_most_likely, precision=examinee.precision, device=examinee.device
    )
    return tuple(text.written() for text in texts)


def _alone(examinee: Examinee, start: Start, done: Callable[[int], None] | None) -> Written:
    cache = None if start.begin is None else start.begin()
    written = examinee.write(start.prompt, length=start.length, ends=start.ends, until=start.until, cache=cache)
    if done is not None:
        done(1)
    return written


class _Text:
    """One of the texts: its tokens so far, and why it ended."""

    def __init__(self, examinee: Examinee, start: Start, done: Callable[[int], None] | None) -> None:
        self.start, self._examinee, self._done = start, examinee, done
        self._made: list[int] = []
        self._stopped_by: Stop = "length"

    def take(self, index: int) -> bool:
        """One more token; whether it wants another one."""
        goes_on = self._takes(index) and len(self._made) < self.start.length
        if not goes_on and self._done is not None:
            self._done(1)
        return goes_on

    def _takes(self, index: int) -> bool:
        if index in self._examinee.ends or index in self.start.ends:
            self._stopped_by = "end of text"
            return False
        self._made.append(index)
        if self.start.until is not None and self.start.until(self._text().rstrip(UNFINISHED)):
            self._stopped_by = "condition"
            return False
        return True

    def written(self) -> Written:
        """What came of it."""
        return Written(text=self._text(), stopped_by=self._stopped_by)

    def _text(self) -> str:
        return self._examinee.tokenizer.decode(self._made, skip_special=True)


def _most_likely(logits: Tensor) -> list[int]:
    check_logits(logits, where="evaluation")
    return cast(list[int], logits.argmax(-1).tolist())

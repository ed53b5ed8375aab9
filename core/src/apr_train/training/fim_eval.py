"""A gate on what was learnt of holes: lines of held-out code are hidden, and the model is asked for them.

The prompt is the one with which holes are filled: PSM, what stands before the line and behind it, as much of both as a row of
the training holds. Of the line's own tokens the loss is measured; then the model writes, greedily, up to the end of text. It
counts as given back when it wrote the line, nothing else, and ended there. What it wrote is put in the line's place and
parsed, never executed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from attrs import field, frozen

from apr_train.data.documents import Document
from apr_train.data.fim_tokens import FimTokens, encode_texts
from apr_train.data.hidden_lines import HiddenLine, hidden_lines
from apr_train.data.python_text import syntax_error
from apr_train.data.special_tokens import separator_id
from apr_train.data.tokenizer import Tokenizer
from apr_train.errors import DataError
from apr_train.model.attention.masks import Causal
from apr_train.model.cache import KeyValueCache
from apr_train.model.loss import head_loss
from apr_train.run.intervals import wilson
from apr_train.training.examinee import Examinee, Stop, Written
from apr_train.training.together import Start, write_together

_TIMES, _MORE = 2, 8
"""A model may write so many times the tokens of the line, and so many more, before it is stopped."""
_LEAST_CONTEXT = 8
"""Tokens around a line; one that leaves less is passed over."""


@frozen(kw_only=True)
class Question:
    """A hidden line as ids."""

    line: HiddenLine
    prompt: tuple[int, ...] = field(repr=False)
    middle: tuple[int, ...]
    """The line's own."""
    length: int
    """Tokens that the model may write."""


@frozen(kw_only=True)
class Filled:
    """What became of one line."""

    source: str
    """Where it is: `path:line`."""
    middle: str
    """The line itself."""
    written: str
    """What the model wrote."""
    stopped_by: Stop
    loss: float
    """Nats, the sum over the line's own tokens."""
    end_loss: float
    """Nats, of the end behind them."""
    tokens: int
    """The line's own."""
    exact: bool
    """Whether the line came back, and nothing behind it."""
    error: str | None
    """What `ast.parse` says of the whole with what the model wrote; None: it is Python."""
    is_python: bool
    """Whether the document is Python as it stands; else `error` says nothing of the model."""


@frozen(kw_only=True)
class FimReport:
    """Of all lines."""

    asked: int
    filled: tuple[Filled, ...]

    @property
    def loss(self) -> float:
        """Nats, mean over all tokens of all lines."""
        return math.fsum(item.loss for item in self.filled) / sum(item.tokens for item in self.filled)

    @property
    def line_loss(self) -> float:
        """Nats of a whole line, mean over the lines."""
        return math.fsum(item.loss for item in self.filled) / len(self.filled)

    @property
    def end_loss(self) -> float:
        """Nats of the end behind a line, mean over the lines."""
        return math.fsum(item.end_loss for item in self.filled) / len(self.filled)

    @property
    def exact(self) -> int:
        """How many came back."""
        return sum(item.exact for item in self.filled)

    @property
    def exact_rate(self) -> float:
        """Share of them."""
        return self.exact / len(self.filled)

    @property
    def exact_interval(self) -> tuple[float, float]:
        """The 95 % interval of that share."""
        return wilson(self.exact, len(self.filled))

    @property
    def judged(self) -> int:
        """How many lines are of documents that are Python."""
        return sum(item.is_python for item in self.filled)

    @property
    def parsed(self) -> int:
        """Of those, how many are Python with what the model wrote."""
        return sum(item.is_python and item.error is None for item in self.filled)

    @property
    def parsed_rate(self) -> float | None:
        """Share of them; None where no document is Python."""
        return self.parsed / self.judged if self.judged else None


def fim_gate(
    examinee: Examinee,
    documents: Iterable[Document],
    tokens: FimTokens,
    *,
    count: int,
    row: int,
    done: Callable[[int], None] | None = None,
) -> FimReport:
    """Ask for a line of each of the first `count` documents that have one; `done` is told of each.

    Raises:
        DataError: when there is none that fits.
    """
    chosen = questions(examinee.tokenizer, documents, tokens, count=count, row=row, positions=examinee.positions)
    return fill(examinee, chosen, tokens, count=count, done=done)


def questions(
    tokenizer: Tokenizer, documents: Iterable[Document], tokens: FimTokens, *, count: int, row: int, positions: int
) -> tuple[Question, ...]:
    """The first `count` lines that leave room for what is around them.

    Args:
        row: tokens in a row of the training, which a line and what is shown around it fit into.
        positions: of the model, which what it writes fits into.

    Raises:
        DataError: when there is none.
    """
    found = (_question(tokenizer, line, tokens, row, positions) for line in hidden_lines(documents))
    chosen = tuple(islice((item for item in found if item is not None), count))
    if not chosen:
        expected = "held-out documents with a line of code and room around it"
        raise DataError("no line to hide", where="--fim", expected=expected, found="none that fits")
    return chosen


def _question(tokenizer: Tokenizer, line: HiddenLine, tokens: FimTokens, row: int, positions: int) -> Question | None:
    """The ids of a line and of as much around it as fits; None where that is next to nothing."""
    texts = (line.prefix, line.middle, line.suffix)
    prefix, middle, suffix = encode_texts(tokenizer, texts, tokens, parse_special=False)
    start = tokenizer.start_ids
    room = min(row, positions) - len(middle) - len(start) - len(tokens.roles) - 1
    if room < min(_LEAST_CONTEXT, len(prefix) + len(suffix)):
        return None
    before = min(len(prefix), max(room // 2, room - len(suffix)))
    prompt = (*start, *tokens.question(prefix[len(prefix) - before :], suffix[: room - before]))
    length = min(_TIMES * len(middle) + _MORE, positions - len(prompt))
    return Question(line=line, prompt=prompt, middle=tuple(middle), length=length)


def fill(
    examinee: Examinee,
    chosen: Iterable[Question],
    tokens: FimTokens,
    *,
    count: int,
    done: Callable[[int], None] | None = None,
) -> FimReport:
    """Ask each question, and judge what comes; `done` is told of each."""
    end = separator_id(examinee.tokenizer) if tokens.end is None else tokens.end
    lines = [_Line(examinee, question, end) for question in chosen]
    starts = [Start(prompt=x.question.prompt, length=x.question.length, ends=tokens.ids | {end}, begin=x.begin) for x in lines]
    written = write_together(examinee, starts, done=done)
    return FimReport(asked=count, filled=tuple(map(_judged, lines, written)))


class _Line:
    """A hidden line, and its loss once the model has read it."""

    def __init__(self, examinee: Examinee, question: Question, end: int) -> None:
        self.question, self._examinee, self._end = question, examinee, end
        self.loss = self.end_loss = math.nan

    def begin(self) -> KeyValueCache:
        """Measure the line; gives what was computed of its prompt on the way."""
        prompt, middle = self.question.prompt, self.question.middle
        room = len(prompt) + max(len(middle), self.question.length)
        cache = KeyValueCache(self._examinee.model.config.num_hidden_layers, max_length=room)
        self.loss, self.end_loss = middle_loss(self._examinee, prompt, middle, self._end, cache)
        cache.truncate(len(prompt) - 1)  # the next token is told by the last one's logits
        return cache


def _judged(asked: _Line, made: Written) -> Filled:
    line, middle = asked.question.line, asked.question.middle
    return Filled(
        source=line.source,
        middle=line.middle,
        written=made.text,
        stopped_by=made.stopped_by,
        loss=asked.loss,
        end_loss=asked.end_loss,
        tokens=len(middle),
        exact=made.stopped_by == "end of text" and made.text == line.middle,
        error=syntax_error(line.filled(made.text)),
        is_python=line.is_python,
    )


@torch.no_grad()
def middle_loss(
    examinee: Examinee, prompt: Sequence[int], middle: Sequence[int], end: int, cache: KeyValueCache | None = None
) -> tuple[float, float]:
    """Nats of the text of a hole behind its prompt, the sum over its tokens, and of the end behind it.

    `cache`: gets the keys and values of prompt and text.
    """
    ids = torch.tensor([[*prompt, *middle]], device=examinee.device)
    targets = torch.tensor([*middle, end], device=examinee.device)
    with examinee.precision.context(examinee.device):
        hidden = examinee.model.hidden_states(ids, mask=Causal(), cache=cache)[0, len(prompt) - 1 :]
        inside, behind = slice(None, -1), slice(-1, None)
        losses = [float(head_loss(examinee.model, hidden[part], targets[part])) for part in (inside, behind)]
    return losses[0], losses[1]

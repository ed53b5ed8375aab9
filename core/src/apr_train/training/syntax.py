"""A gate on what was learnt: how many functions that a model completes are Python.

The prompts are signatures of functions at the top level of held-out documents (a method's signature alone would ask for an
indentation that it does not show), up to and without the line's end (a tokenizer may merge that with the indentation behind
it). A completion is greedy; it ends at the end-of-text token, at the first line that is
neither blank nor indented (which does not belong to the function any more), or at the token limit, and then its last,
unfinished line is left out. It counts when signature and completion together pass `ast.parse`; a signature alone does not,
so at least one statement was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from attrs import frozen

from apr_train.data.documents import Document
from apr_train.data.python_text import cut_body, function_end, signatures, syntax_error
from apr_train.data.special_tokens import ids_of_prompt
from apr_train.data.tokenizer import Tokenizer
from apr_train.errors import DataError
from apr_train.training.examinee import Examinee, Written
from apr_train.training.together import Start, write_together

LENGTH = 96
"""Tokens of a completion at most, where the user does not say."""


@frozen(kw_only=True)
class Completed:
    """One function."""

    source: str
    """Where its signature is from: `path:line`."""
    prompt: str
    completion: str
    """As it was judged."""
    stopped_by: str
    """`end of function`, `end of text` or `length`."""
    error: str | None
    """What `ast.parse` says; None: it is Python."""


@frozen(kw_only=True)
class SyntaxReport:
    """Of all completions."""

    asked: int
    completed: tuple[Completed, ...]

    @property
    def parsed(self) -> int:
        """How many are Python."""
        return sum(item.error is None for item in self.completed)

    @property
    def rate(self) -> float:
        """Share of them."""
        return self.parsed / len(self.completed)


def syntax_gate(
    examinee: Examinee,
    documents: Iterable[Document],
    *,
    count: int,
    length: int | None = None,
    parse_special: bool = False,
    done: Callable[[int], None] | None = None,
) -> SyntaxReport:
    """Complete the first `count` signatures of the documents; `done` is told of each.

    `parse_special` is that of the run's data: a signature is text of the corpus.

    Raises:
        DataError: when no document holds a function, or none that fits the model's positions.
    """
    length = length or completion_length(examinee.positions)
    room = examinee.positions - length
    chosen = prompts(examinee.tokenizer, documents, count=count, room=room, parse_special=parse_special)
    return complete(examinee, chosen, count=count, length=length, done=done)


def completion_length(positions: int) -> int:
    """Tokens of a completion at most, of a model with so many positions."""
    return min(LENGTH, positions // 2)


@frozen(kw_only=True)
class Prompt:
    """A signature to be completed."""

    source: str
    text: str
    ids: tuple[int, ...]


def prompts(
    tokenizer: Tokenizer, documents: Iterable[Document], *, count: int, room: int, parse_special: bool
) -> tuple[Prompt, ...]:
    """The first `count` signatures of at most `room` tokens.

    Raises:
        DataError: when there is none.
    """
    found = (
        Prompt(source=where, text=text, ids=tuple(ids_of_prompt(tokenizer, text, parse_special=parse_special)))
        for where, text in signatures(documents)
    )
    chosen = tuple(islice((item for item in found if len(item.ids) <= room), count))
    if not chosen:
        expected = "held-out documents with Python functions"
        raise DataError("no function signature to complete", where="--syntax", expected=expected, found="none that fits")
    return chosen


def complete(
    examinee: Examinee,
    chosen: Iterable[Prompt],
    *,
    count: int,
    length: int,
    done: Callable[[int], None] | None = None,
) -> SyntaxReport:
    """Complete signatures, and judge what comes of them; `done` is told of each."""
    prompts = tuple(chosen)
    starts = [Start(prompt=prompt.ids, length=length, until=lambda text: function_end(text) is not None) for prompt in prompts]
    written = write_together(examinee, starts, done=done)
    return SyntaxReport(asked=count, completed=tuple(map(_judged, prompts, written)))


def _judged(prompt: Prompt, made: Written) -> Completed:
    body, stopped_by = cut_body(made.text, limited=made.stopped_by == "length")
    return Completed(
        source=prompt.source,
        prompt=prompt.text,
        completion=body,
        stopped_by=stopped_by or made.stopped_by,
        error=syntax_error(prompt.text + body),
    )

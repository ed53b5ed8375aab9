"""A gate on what was learnt: how many functions that a model completes are Python.

The prompts are signatures of functions at the top level of held-out documents (a method's signature alone would ask for an
indentation that it does not show), up to and without the line's end (a tokenizer may merge that with the indentation behind
it). A completion is greedy; it ends at the end-of-text token, at the first line that is
neither blank nor indented (which does not belong to the function any more), or at the token limit, and then its last,
unfinished line is left out. It counts when signature and completion together pass `ast.parse`; a signature alone does not,
so at least one statement was written.
"""

from __future__ import annotations

import ast
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, zip_longest

from attrs import frozen

from apr_train.data.documents import Document
from apr_train.data.special_tokens import ids_of_prompt
from apr_train.errors import DataError
from apr_train.inference.generate import Ends, Sampling, continue_text, ends_of_text
from apr_train.inference.ready import Ready

LENGTH = 96
"""Tokens of a completion at most, where the user does not say."""
_UNINDENTED = re.compile(r"\n(?=\S)")
Function = ast.FunctionDef | ast.AsyncFunctionDef


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
    ready: Ready,
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
    length = length or min(LENGTH, ready.config.usable_positions // 2)
    fitting = ((where, prompt) for where, prompt in signatures(documents) if _fits(ready, prompt, length, parse_special))
    chosen = list(islice(fitting, count))
    if not chosen:
        expected = "held-out documents with Python functions"
        raise DataError("no function signature to complete", where="--syntax", expected=expected, found="none that fits")
    completed = []
    for where, prompt in chosen:
        completed.append(_complete(ready, where, prompt, length, parse_special))
        if done is not None:
            done(1)
    return SyntaxReport(asked=count, completed=tuple(completed))


def signatures(documents: Iterable[Document]) -> Iterator[tuple[str, str]]:
    """`(path:line, signature)`: the first top-level function of every document that is Python, then the second of each.

    A signature is the source from `def` to the end of its last line; none comes twice.
    """
    seen: set[str] = set()
    for found in _in_turn(documents):
        if found[1] not in seen:
            seen.add(found[1])
            yield found


def _in_turn(documents: Iterable[Document]) -> Iterator[tuple[str, str]]:
    """Reads no more documents than the first round needs."""
    rest = []
    for document in documents:
        found = list(_signatures_in(document))
        yield from found[:1]
        rest.append(found[1:])
    yield from (found for found in chain.from_iterable(zip_longest(*rest)) if found is not None)


def _signatures_in(document: Document) -> Iterator[tuple[str, str]]:
    lines = io.StringIO(document.text, newline=None).readlines()  # a line as Python counts them: \f and others end none
    tree = _parse("".join(lines))
    if isinstance(tree, str):
        return
    for node in (node for node in tree.body if isinstance(node, Function)):
        text = _signature(node, lines)
        if text is not None:
            yield f"{document.source}:{node.lineno}", text


def _signature(node: Function, lines: Sequence[str]) -> str | None:
    """The lines before the body, without comments and blank lines at their end; None for a function on one line."""
    first = node.body[0]
    begin = min([first.lineno, *(item.lineno for item in getattr(first, "decorator_list", ()))])
    kept = list(lines[node.lineno - 1 : begin - 1])
    while kept and (not kept[-1].strip() or kept[-1].lstrip().startswith("#")):
        kept.pop()
    text = "".join(kept).strip()
    return text if kept and not isinstance(_parse(text + "\n    pass\n"), str) else None


def _fits(ready: Ready, prompt: str, length: int, parse_special: bool) -> bool:
    return len(ids_of_prompt(ready.tokenizer, prompt, parse_special=parse_special)) + length <= ready.config.usable_positions


def _complete(ready: Ready, where: str, prompt: str, length: int, parse_special: bool) -> Completed:
    ends = Ends(max_tokens=length, until=lambda text: function_end(text) is not None, tokens=ends_of_text(ready))
    made = continue_text(ready, prompt, sampling=Sampling(), ends=ends, parse_special=parse_special)
    body, stopped_by = cut_body(made.text, limited=made.stopped_by == "length")
    if stopped_by is None:
        stopped_by = made.stopped_by
    judged = _parse(prompt + body)
    error = judged if isinstance(judged, str) else None
    return Completed(source=where, prompt=prompt, completion=body, stopped_by=stopped_by, error=error)


def function_end(text: str) -> int | None:
    """Where the first line after the signature's begins that is neither blank nor indented; None while there is none."""
    found = _UNINDENTED.search(text)
    return None if found is None else found.end()


def cut_body(text: str, *, limited: bool) -> tuple[str, str | None]:
    """The function's part of a completion, and `end of function` if it was ended by an unindented line.

    `limited`: the token limit ended it, so that its last line may be half a line.
    """
    end = function_end(text)
    if end is not None:
        return text[:end], "end of function"
    return (text[: text.rfind("\n") + 1] if limited else text), None


def _parse(text: str) -> ast.Module | str:
    """The tree, or what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a string is Python all the same
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"

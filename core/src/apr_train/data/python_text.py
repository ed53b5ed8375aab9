"""Python in documents, as text: signatures, a function's end, lines of code, whether a text is Python. Nothing is executed."""

from __future__ import annotations

import ast
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest

from apr_train.data.documents import Document

_UNINDENTED = re.compile(r"\n(?=\S)")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def syntax_error(text: str) -> str | None:
    """What `ast.parse` says against a text; None: it is Python."""
    judged = _parse(text)
    return judged if isinstance(judged, str) else None


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

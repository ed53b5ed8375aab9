"""Lines of code to hide: one of each document, chosen by its text alone, so that every model is asked for the same ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from attrs import field, frozen

from apr_train.data.documents import Document
from apr_train.data.python_text import syntax_error
from apr_train.data.split import split_key

LARGEST = 1 << 20
"""Bytes of a document at most: its lines are held in memory."""
_WORD = re.compile(r"\w+|[^\w\s]")
_WORDS = 3
_COMMENTS = ("#", "//", "/*")


@frozen(kw_only=True)
class HiddenLine:
    """A document with one of its lines taken out."""

    source: str
    """Where the line is: `path:line`."""
    prefix: str = field(repr=False)
    """All before it."""
    middle: str
    """The line, its indentation included, without its end."""
    suffix: str = field(repr=False)
    """All behind it, from the line's end on."""
    is_python: bool
    """Whether the whole document is Python."""

    def filled(self, text: str) -> str:
        """The document with another text in the line's place."""
        return self.prefix + text + self.suffix


def hidden_lines(documents: Iterable[Document]) -> Iterator[HiddenLine]:
    """A line of every document that has one to hide: not blank, no comment, of at least three words or signs.

    Words are counted by a regular expression and not by a tokenizer, for tokenizers differ between models.
    """
    for document in documents:
        if len(document.utf8) <= LARGEST and (line := _hidden(document)) is not None:
            yield line


def _hidden(document: Document) -> HiddenLine | None:
    text = document.text
    lines = text.split("\n")
    places = [place for place, line in enumerate(lines) if _is_code(line)]
    if not places:
        return None
    key = split_key(document)
    place = min(places, key=lambda place: blake2b(f"{key}/{place}".encode(), digest_size=8, person=b"apr-line").digest())
    begin = sum(len(line) + 1 for line in lines[:place])
    middle = lines[place].removesuffix("\r")
    return HiddenLine(
        source=f"{document.source}:{place + 1}",
        prefix=text[:begin],
        middle=middle,
        suffix=text[begin + len(middle) :],
        is_python=syntax_error(text) is None,
    )


def _is_code(line: str) -> bool:
    return not line.lstrip().startswith(_COMMENTS) and len(_WORD.findall(line)) >= _WORDS

"""Long texts in chunks that are encoded one by one, and give the same tokens as the whole.

A tokenizer needs some 170 bytes of memory for each byte of a text that it encodes at once. A pre-tokenizer cuts a text into
words anyway, and no token reaches from one word into the next, so that a cut between two words changes nothing. Where such
a place is depends on the tokenizer: candidates are looked for by what stands on both sides of a place, and the tokenizer
itself has to confirm one, on the text around it (`TextJudge.boundary`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from apr_train.data.protocols import TextJudge

LONGEST = 16
"""Pieces that are kept together at most while no place to cut is found: a megabyte of `Document.pieces()`."""
WINDOW = 256
"""Characters on both sides of a cut that the tokenizer is asked about; more than a word, or an added token, is long."""
_PLACES = (
    re.compile(r"\n()(?<=\S\n)(?=\S)"),
    re.compile(r"() (?<=\S )(?=[^\W_])"),
    re.compile(r"[^\W_]()(?=[^\w\s])"),
    re.compile(r"[^\W\d_]()(?=\d)|\d()(?=[^\W\d_])"),
)
"""Where pre-tokenizers cut, at the empty group, the most usual first: behind the newline of a line, in front of a word's
space, at the end of a word, between letters and digits. None is inside white space, whose cut depends on what follows."""
_ATTEMPTS = 4


@frozen
class Chunk:
    """A part of a text."""

    text: str
    forced: bool = False
    """Whether its end is no place to cut: the tokens there may be others than those of the whole text."""


def chunks(
    pieces: Iterable[str], judge: TextJudge, *, parse_special: bool, window: int = WINDOW, longest: int = LONGEST
) -> Iterator[Chunk]:
    """The text of `pieces` in chunks of about a piece, of `longest` pieces where there is no place to cut.

    Args:
        pieces: consecutive parts of one text, such as `Document.pieces()`.
        judge: the tokenizer that the chunks are for.
        parse_special: whether text that spells a special token is that token.
        window: the characters on both sides of a cut that `judge` is shown.
        longest: how many pieces are kept together at most.
    """
    held, new, count = "", 0, 0  # the text so far, where the search goes on, and how many pieces it is made of
    for piece in pieces:
        held, count = held + piece, count + 1
        cut = _safe_cut(held, max(new, window), judge, parse_special, window) if count > 1 else None
        if cut is None and count < longest:
            new = max(0, len(held) - window)
            continue
        place = _forced_cut(held, judge, parse_special, window) if cut is None else cut
        yield Chunk(held[:place], forced=cut is None)
        held, count = held[place:], 1
        new = max(0, len(held) - window)
    if held:
        yield Chunk(held)


def _safe_cut(text: str, start: int, judge: TextJudge, parse_special: bool, window: int) -> int | None:
    """A place between two words, with a window of text behind it."""
    for places in _PLACES:
        found = places.finditer(text, start, len(text) - window)
        for match, _ in zip(found, range(_ATTEMPTS), strict=False):
            cut = match.end(match.lastindex or 0)
            if _boundary(text, cut, judge, parse_special, window) == "word":
                return cut
    return None


def _forced_cut(text: str, judge: TextJudge, parse_special: bool, window: int) -> int:
    """A place near the end of a text, between two tokens where there is one."""
    last = max(1, len(text) - window)
    near = range(last, max(0, last - window), -1)
    return next((cut for cut in near if _boundary(text, cut, judge, parse_special, window) is not None), last)


def _boundary(text: str, cut: int, judge: TextJudge, parse_special: bool, window: int) -> str | None:
    left, right = text[max(0, cut - window) : cut], text[cut : cut + window]
    # As text, too: what spells a special token is counted, and must not be cut in two.
    return judge.boundary(left, right, parse_special=True) and judge.boundary(left, right, parse_special=parse_special)

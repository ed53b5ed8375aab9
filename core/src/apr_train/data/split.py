"""Which documents are held out: the key of a text, the share of all text, and the rule that sends each to its side.

The side of a document is decided by its key, a 64-bit BLAKE2b of its words, white space apart, so that no text is on both
sides and copies that differ only in line endings or in indentation go together. Held out are the documents whose keys are
the lowest, until their text is the wanted share of all text:

A text that is there several times counts once, is held out once, and then no copy of it is learnt. "Larger than the share" is
said of all of its copies together, and of the share of all copies: what most of a corpus is made of stays in the training.

- Where the keys below `fraction × 2⁶⁴` come within a tenth of that share, they are the ones: with many documents the key
  alone decides, and a new document moves no other across.
- Else documents that are larger than the share are never held out, and the lowest keys of the others are, as many as come
  nearest.
- Else, when all others together are less than half of the share, the smallest of the large ones goes with them, if they
  stay within twice the share.
- Else whole documents cannot make up the share, which is said: the largest gives its tail, as a single text does.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from attrs import frozen

from apr_train import rules
from apr_train.data.documents import Document
from apr_train.data.formats.utf8 import PIECE
from apr_train.data.id_documents import IdDocument
from apr_train.errors import DataError, Finding

Numbers = np.ndarray[Any, np.dtype[np.uint64]]
Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")
"""In the order in which they are made: only all of the one side says what the other is."""
SPLIT_RULE = "text-share-1"
"""The rule of this module by name: another rule holds out other documents of the same text, so a run notes it."""
_KEYS = 1 << 64
_NEAR = 0.1
"""How far from the wanted share, as a part of it, the keys alone may come."""
_MOST_OF_ONE = 0.9
"""The largest tail of a document: its head is left to learn from."""
_SHORTEST_TAIL = 64
"""Bytes; where the share is less, and there are several documents, the smallest is held out whole."""


@frozen(kw_only=True)
class Tail:
    """The end of a document that is held out when no whole one can be."""

    key: int
    """The document's."""
    fraction: float
    """The share of it, at its end."""


@frozen(kw_only=True)
class Split:
    """The rule that sends a document to its side."""

    threshold: int
    """Keys below it are held out."""
    kept: frozenset[int] = frozenset()
    """Keys that are not held out all the same: of documents that are too large."""
    tail: Tail | None = None
    """Set when no whole document is held out."""

    def holds_out(self, key: int) -> bool:
        """Whether the whole document of a key is held out."""
        return key < self.threshold and key not in self.kept


NOTHING, EVERYTHING = Split(threshold=0), Split(threshold=_KEYS)
"""What is held out of `--data`, and of `--val-data`, where there is a held-out set of one's own."""


class KeyScan:
    """Key and size of every document, 16 bytes each, which is all that a split needs."""

    def __init__(self) -> None:
        self._keys, self._sizes = array("Q"), array("Q")

    @property
    def numbers(self) -> tuple[Numbers, Numbers]:
        """Keys and sizes in the order of the documents, as u64."""
        return np.array(self._keys, np.uint64), np.array(self._sizes, np.uint64)

    def add(self, key: int, size: int) -> None:
        """Take note of one document: its key and its bytes."""
        self._keys.append(key)
        self._sizes.append(size)

    def texts(self) -> Texts:
        """The distinct texts.

        Raises:
            DataError: when there was no document.
        """
        return Texts.of(*self.numbers)


@frozen(kw_only=True)
class Texts:
    """The distinct texts of a corpus, by their keys in ascending order."""

    keys: np.ndarray[Any, np.dtype[np.uint64]]
    sizes: np.ndarray[Any, np.dtype[np.int64]]
    """Bytes of each, of the copy that comes first."""
    totals: np.ndarray[Any, np.dtype[np.int64]]
    """Bytes of each, of all copies together."""
    copies: np.ndarray[Any, np.dtype[np.int64]]
    """How often each is there beyond the first time."""

    @classmethod
    def of(cls, keys: Numbers, sizes: Numbers) -> Texts:
        """The distinct texts among documents.

        Raises:
            DataError: when there is no document.
        """
        if not len(keys):
            expected = "at least one document with text in it"
            raise DataError("the corpus is empty", where="--data", rule=rules.PREFLIGHT_025, expected=expected)
        order = np.argsort(keys, kind="stable")
        keys, in_order = keys[order], sizes.astype(np.int64)[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        copies, totals = np.diff(starts, append=len(keys)) - 1, np.add.reduceat(in_order, starts)
        return cls(keys=keys[starts], sizes=in_order[starts], totals=totals, copies=copies)

    @property
    def single(self) -> bool:
        """Whether all documents are the same text."""
        return len(self.keys) == 1

    def split(self, fraction: float) -> Split:
        """The rule that holds out about `fraction` of the text, and leaves neither side empty."""
        share = fraction * int(self.sizes.sum())
        light = self.totals <= fraction * int(self.totals.sum())
        return self._by_key(fraction, share, light) or self._by_size(share, light) or self._by_tail(share)

    def _by_key(self, fraction: float, share: float, light: np.ndarray[Any, np.dtype[np.bool_]]) -> Split | None:
        threshold = int(fraction * _KEYS)
        below = int(np.searchsorted(self.keys, np.uint64(threshold)))
        near = abs(int(self.sizes[:below].sum()) - share) <= _NEAR * share
        near = near and bool((light | (self.copies == 0))[:below].all())
        return Split(threshold=threshold) if near and below < len(self.keys) else None

    def _by_size(self, share: float, light: np.ndarray[Any, np.dtype[np.bool_]]) -> Split | None:
        if light.all():
            light[np.argmin(self.sizes)] = False  # one is left to learn from
        places = np.flatnonzero(light)
        sums = np.cumsum(self.sizes[places])
        most = int(sums[-1]) if places.size else 0
        if 2 * most >= share:
            return self._up_to(int(places[np.argmin(np.abs(sums - share))]), light)
        heavy = np.flatnonzero(~light)
        smallest = int(heavy[np.argmin(self.sizes[heavy])])
        fits = heavy.size > 1 and int(self.sizes[smallest]) + most <= 2 * share
        return self._up_to(smallest, light) if fits else None

    def _up_to(self, place: int, light: np.ndarray[Any, np.dtype[np.bool_]]) -> Split:
        """Hold out that text, and of those with lower keys the light ones."""
        kept = self.keys[:place][~light[:place]]
        return Split(threshold=int(self.keys[place]) + 1, kept=frozenset(map(int, kept)))

    def _by_tail(self, share: float) -> Split:
        if share < _SHORTEST_TAIL and not self.single:
            return self._up_to(int(np.argmin(self.sizes)), np.zeros(len(self.keys), np.bool_))
        largest = int(np.argmax(self.sizes))
        fraction = min(_MOST_OF_ONE, share / int(self.sizes[largest]))
        return Split(threshold=0, tail=Tail(key=int(self.keys[largest]), fraction=fraction))

    def findings(self, fraction: float, split: Split, name: str = "") -> list[Finding]:
        """A warning, of the source of that name, when whole documents do not make up the share, unless there is one only."""
        places = self._held(split)
        held, total = int(self.sizes[places].sum()), int(self.sizes.sum())
        if self.single or fraction * total / 2 <= held <= 2 * fraction * total:
            return []
        whole = "the smallest" if places.size == 1 else f"{places.size:,} of them"
        instead = "the end of the largest, whose beginning is learnt" if split.tail else f"{whole}, {held:,} bytes"
        return [
            Finding(
                rule=rules.PREFLIGHT_024,
                subject="--data",
                field=name,
                problem="whole documents do not make up the share that is held out",
                expected=f"documents that come to about {fraction * total:,.0f} of {total:,} bytes (--validation-fraction)",
                found=f"{len(self.keys):,} texts, the smallest of {int(self.sizes.min()):,} bytes",
                hint=f"Held out is {instead}. Give more documents, such as JSONL with one a line.",
                severity="warning",
            )
        ]

    def left_out(self, split: Split) -> int:
        """Documents on neither side, whole or by their end: copies of what is held out."""
        ends = 0 if split.tail is None else int(self.copies[self.keys == np.uint64(split.tail.key)].sum())
        return ends + int(self.copies[self._held(split)].sum())

    def held_keys(self, split: Split, *, whole: bool = False) -> Numbers:
        """The keys of the texts of which something is held out, or that are held out whole."""
        tail = [] if split.tail is None or whole else [split.tail.key]
        return np.concatenate((self.keys[self._held(split)], np.array(tail, np.uint64)))

    def documents_of(self, keys: Iterable[int]) -> int:
        """How many documents have one of these keys."""
        return int((self.copies[np.isin(self.keys, np.array(list(keys), np.uint64))] + 1).sum())

    def _held(self, split: Split) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Places of the texts that are held out whole."""
        below = int(np.searchsorted(self.keys, np.uint64(min(split.threshold, _KEYS - 1))))
        kept = np.isin(self.keys[:below], np.array(sorted(split.kept), np.uint64))
        return np.flatnonzero(~kept)


def split_key(text: Document | str) -> int:
    """The 64-bit number that decides a text's side, the same on every machine and in every version."""
    if isinstance(text, IdDocument):
        return text.key
    words = blake2b(digest_size=8, person=b"apr-split")
    inside = begun = False  # a word that the next piece may go on with; anything so far
    for piece in (text,) if isinstance(text, str) else text.pieces():
        if found := " ".join(piece.split()):
            joined = " " if begun and not (inside and not piece[0].isspace()) else ""
            words.update((joined + found).encode("utf-8"))
            begun = True
        inside = bool(piece) and not piece[-1].isspace()
    return int.from_bytes(words.digest(), "little")


HeldOutDocuments = dict[int, Document]
"""The documents to validate on, each text once, by their keys."""


def train_documents(
    documents: Iterable[Document],
    split: Split,
    held: HeldOutDocuments | None = None,
    elsewhere: frozenset[int] = frozenset(),
) -> Iterator[Document]:
    """The documents to learn from, in their order; when they are through, `held` has the others.

    What has one of the keys of `elsewhere` is learnt nowhere.
    """
    held = {} if held is None else held
    for document in documents:
        key = split_key(document)
        if split.tail is not None and key == split.tail.key:
            head, tail = _cut(document, split.tail.fraction)
            held.setdefault(key, tail)
            if key not in elsewhere:
                yield head
        elif split.holds_out(key):
            held.setdefault(key, document)
        elif key not in elsewhere:
            yield document


def held_out_of(documents: Iterable[Document], split: Split) -> list[Document]:
    """The documents to validate on, in the order of `in_order`."""
    held: HeldOutDocuments = {}
    for _ in train_documents(documents, split, held):
        pass
    return in_order(held)


def in_order(held: HeldOutDocuments) -> list[Document]:
    """The documents by their keys: an order as good as random, and fixed, so that the first N are a fair sample."""
    return [held[key] for key in sorted(held)]


def _cut(document: Document, fraction: float) -> tuple[Document, Document]:
    """Head and tail of a text, cut at the end of a line, else between words, where that does not double the tail."""
    if isinstance(document, IdDocument):
        return document.cut(fraction)
    raw = bytes(document.utf8)
    length = _length(raw)
    target = round(length * (1 - fraction))
    while 0 < target < len(raw) and raw[target] & 0xC0 == 0x80:  # inside a character
        target -= 1
    earliest = max(1, 2 * target - length)
    places = (raw.rfind(end, earliest, target) + 1 for end in (b"\n", b" "))
    cut = next((place for place in places if place), target)
    head, tail = document.part(0, cut), document.part(cut)
    if head.is_blank() or tail.is_blank():
        hint = "Give more text: a document must be long enough to learn from its head and to validate on its tail."
        raise DataError(
            "too short to be split into a head and a tail",
            where=document.source,
            rule=rules.PREFLIGHT_025,
            found=repr(next(document.pieces())[:80]),
            hint=hint,
        )
    return head, tail


def _length(raw: bytes) -> int:
    """Bytes of a text without the white space at its end."""
    end = len(raw)
    while end and not (kept := len(raw[max(0, end - PIECE) : end].rstrip())):
        end = max(0, end - PIECE)
    return max(0, end - PIECE) + kept if end else 0

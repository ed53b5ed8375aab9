"""One reading of all documents before any is encoded: their hash, their size, and which of them are held out.

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
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from attrs import field, frozen

from apr_train import rules
from apr_train.data.documents import (
    TEXTS,
    Document,
    Form,
    NoRecordsError,
    Take,
    file_form,
    is_json,
    read_documents,
    require_records,
)
from apr_train.data.formats.utf8 import PIECE, NotUtf8Error
from apr_train.data.protocols import StageProgress, byte_counter
from apr_train.data.sources import counted, find_files, unreadable
from apr_train.errors import DataError, Finding
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings

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


class KeyScan:
    """Key and size of every document, 16 bytes each, which is all that a split needs."""

    def __init__(self) -> None:
        self._keys, self._sizes = array("Q"), array("Q")

    def add(self, key: int, size: int) -> None:
        """Take note of one document: its key and its bytes."""
        self._keys.append(key)
        self._sizes.append(size)

    def texts(self) -> Texts:
        """The distinct texts.

        Raises:
            DataError: when there was no document.
        """
        if not self._keys:
            expected = "at least one document with text in it"
            raise DataError("the corpus is empty", where="--data", rule=rules.PREFLIGHT_025, expected=expected)
        keys, sizes = np.frombuffer(self._keys, np.uint64), np.frombuffer(self._sizes, np.uint64).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        copies, totals = np.diff(starts, append=len(keys)) - 1, np.add.reduceat(sizes[order], starts)
        return Texts(keys=keys[starts], sizes=sizes[order][starts], totals=totals, copies=copies)


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

    def findings(self, fraction: float, split: Split) -> list[Finding]:
        """A warning when whole documents do not make up the share, unless there is one only."""
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

    def _held(self, split: Split) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Places of the texts that are held out whole."""
        below = int(np.searchsorted(self.keys, np.uint64(min(split.threshold, _KEYS - 1))))
        kept = np.isin(self.keys[:below], np.array(sorted(split.kept), np.uint64))
        return np.flatnonzero(~kept)


def split_key(text: Document | str) -> int:
    """The 64-bit number that decides a text's side, the same on every machine and in every version."""
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


def train_documents(documents: Iterable[Document], split: Split, held: HeldOutDocuments | None = None) -> Iterator[Document]:
    """The documents to learn from, in their order; when they are through, `held` has the others."""
    held = {} if held is None else held
    for document in documents:
        key = split_key(document)
        if split.tail is not None and key == split.tail.key:
            head, tail = _cut(document, split.tail.fraction)
            held.setdefault(key, tail)
            yield head
        elif split.holds_out(key):
            held.setdefault(key, document)
        else:
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


@frozen(kw_only=True)
class Scan:
    """What one reading of all documents tells, before anything is encoded."""

    files: tuple[Path, ...] = field(repr=False)
    """The files that are read."""
    hash: str
    """Hex digest of the texts in their order."""
    text_bytes: int
    """UTF-8 bytes of all texts."""
    split: Split
    """The rule that sends each document to its side."""
    take: Take = TEXTS
    """What is taken of each record."""
    left_out: int = 0
    """Documents whose text, or whose end, is on neither side: copies of what is held out."""

    def notices(self) -> Iterator[str]:
        """What the split takes out of the text."""
        if self.left_out:
            what = "documents" if self.split.tail is None else "documents, of which only the beginning is learnt"
            yield f"copies of held-out text, which is held out once and not learnt: {self.left_out:,} {what}"

    def train(self, held: HeldOutDocuments | None = None) -> Iterator[Document]:
        """The documents to learn from, in their order; when they are through, `held` has those to validate on."""
        return train_documents(self._documents(), self.split, held)

    def validation(self) -> list[Document]:
        """The documents to validate on, in the order of their keys."""
        return held_out_of(self._documents(), self.split)

    def _documents(self) -> Iterator[Document]:
        """The documents once more.

        Raises:
            DataError: at the end, when they are not what they were.
        """
        digest = _TextDigest()
        for document in read_documents(self.files, self.take):
            digest.add(document)
            yield document
        if digest.hex() != self.hash:
            raise DataError("the corpus changed while it was read", where="--data", hint="Run it again.")


def scan_corpus(settings: DataSettings, take: Take = TEXTS, *, notice: Say, progress: StageProgress | None = None) -> Scan:
    """Read all documents of `settings.data` once, and split them by `settings.validation_fraction`.

    A text that is not UTF-8 is left out, with a notice, unless the user named that very file. JSONL is data, of which
    nothing is left out.

    Raises:
        DataError: when they cannot be read, or when there are none.
    """
    files = find_files(settings.data, notice=notice, gitignore=settings.gitignore)
    done = byte_counter(progress, "read", _total_size(files) if progress is not None else 0)
    reading = Reading(settings, take)
    for path in files:
        reading.read(path, done)
    for text in reading.notices():
        notice(text)
    scan, findings = reading.scan()
    for text in scan.notices():
        notice(text)
    for finding in findings:
        notice(f"warning: {finding}")
    if scan.split.tail is not None and not findings:
        notice("the corpus is a single text: its tail is held out for validation")
    return scan


class Reading:
    """The documents of files as they are read: their hash and keys, and which of the files are taken how."""

    def __init__(self, settings: DataSettings, take: Take = TEXTS) -> None:
        self._take = take
        self._fraction = settings.validation_fraction
        self._named = {Path(argument).resolve() for argument in settings.data}
        self.digest, self.keys = _TextDigest(), KeyScan()
        self.kept: list[Path] = []
        self._not_utf8: list[Path] = []
        self._no_records: list[Path] = []
        self._json: dict[Form, int] = {}
        self._notebooks = 0

    def read(self, path: Path, done: Callable[[int], None] = lambda _: None) -> None:
        """Take all documents of a file.

        Raises:
            DataError: for what cannot be read, and for data and named files that are not what they should be.
        """
        form = self.form(path)
        try:
            for document in read_documents([path], self._take, done=done):
                self.keys.add(split_key(document), self.digest.add(document))
            self.kept.append(path)
        except NotUtf8Error:
            if form != "text" or path.resolve() in self._named:
                raise
            self._not_utf8.append(path)
        except NoRecordsError:
            if path.resolve() in self._named:
                raise
            self._no_records.append(path)

    def form(self, path: Path) -> Form:
        """How documents lie in a file, noted for `notices`.

        Raises:
            DataError: when it cannot be read, or is a named list of no texts.
        """
        form = file_form(path, self._take)
        if is_json(path):
            if form == "text" and path.resolve() in self._named:
                require_records(path, self._take)
            self._json[form] = self._json.get(form, 0) + 1
        self._notebooks += path.suffix.lower() == ".ipynb"
        return form

    def notices(self) -> Iterator[str]:
        """What was left out, and what was taken for what."""
        if self._not_utf8:
            yield f"files left out because they are not UTF-8: {counted(self._not_utf8)}"
        if self._no_records:
            yield f"files left out because they hold no records: {counted(self._no_records)}"
        if self._json:
            taken = (f"{self._json[form]} {how}" for form, how in _TAKEN.items() if form in self._json)
            yield f".json files: {', '.join(taken)}"
        if self._notebooks:
            yield f".ipynb files: {self._notebooks} taken as the JSON that they are; nbconvert makes scripts of them"

    def scan(self) -> tuple[Scan, list[Finding]]:
        """What was read, split, and a warning where whole documents do not make up the share.

        Raises:
            DataError: when there was no document.
        """
        texts = self.keys.texts()
        split = texts.split(self._fraction)
        scan = Scan(
            files=tuple(self.kept),
            hash=self.digest.hex(),
            text_bytes=self.digest.text_bytes,
            split=split,
            take=self._take,
            left_out=texts.left_out(split),
        )
        return scan, texts.findings(self._fraction, split)


_TAKEN: dict[Form, str] = {
    "array": "read as arrays, a document a record",
    "lines": "read as JSON lines, a document a line",
    "text": "taken as text as they stand",
}


def _total_size(files: list[Path]) -> int:
    try:
        return sum(path.stat().st_size for path in files)
    except OSError as error:
        raise unreadable(error) from error


class _TextDigest:
    """A hash of texts in their order; the lengths keep two texts apart from their concatenation."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=32)
        self.text_bytes = 0

    def add(self, document: Document) -> int:
        """Take one more text; returns its bytes."""
        raw = document.utf8
        self._hash.update(len(raw).to_bytes(8, "little"))
        self._hash.update(raw)
        self.text_bytes += len(raw)
        return len(raw)

    def hex(self) -> str:
        return self._hash.hexdigest()

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

Of several sources each is split by itself. What is held out of one is learnt from none: a text that is in two of them has one
key, and a source leaves out what another one holds out. With a held-out set of one's own nothing else is held out, and no
text that is in that set is learnt.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    TextRecords,
    file_form,
    is_json,
    read_documents,
    require_records,
)
from apr_train.data.formats.packed import unpacked_name
from apr_train.data.formats.utf8 import PIECE, NotUtf8Error
from apr_train.data.id_documents import IdDocument, ShardIds, read_ids
from apr_train.data.protocols import StageProgress, byte_counter
from apr_train.data.sources import counted, find_files, unreadable
from apr_train.data.unchanged import Readout, Unchanged, now, states_of
from apr_train.errors import DataError, Finding
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings

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


@frozen(kw_only=True)
class Contents:
    """What one reading of all documents of a source tells, before it is known what other sources hold out."""

    name: str | None
    """The source's."""
    files: tuple[Path, ...] = field(repr=False)
    """The files that are read."""
    hash: str
    """Hex digest of the texts in their order."""
    text_bytes: int
    """UTF-8 bytes of all texts."""
    texts: Texts = field(repr=False, eq=False)
    take: Take
    """What is taken of each record."""
    shards: ShardIds | None = None
    """For files of token ids: what they mean."""
    notes: tuple[str, ...] = ()
    """What was left out, and what was taken for what."""
    documents: int
    """How many there are, copies counted."""
    recalled: Path | None = field(default=None, eq=False, repr=False)
    """The entry of the cache that this is from; None: the files were read."""


@frozen(kw_only=True)
class Scan:
    """What is known of a source before anything is encoded: its documents, and on which side each of them is."""

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
    shards: ShardIds | None = None
    """For files of token ids: what they mean."""
    name: str | None = None
    """The source's."""
    elsewhere: frozenset[int] = frozenset()
    """Keys of texts that another source, or a held-out set of one's own, holds out: here they are on neither side."""
    left_elsewhere: int = 0
    """Documents with such a key."""
    documents: int = 0
    """How many there are on both sides and on neither."""
    recalled: Path | None = field(default=None, eq=False, repr=False)
    """The entry of the cache that the hash is from; None: the files were read."""

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides on which it has documents."""
        return ("validation",) if self.split == EVERYTHING else ("train",) if self.split == NOTHING else SIDES

    def notices(self) -> Iterator[str]:
        """What the split takes out of the text."""
        of = "" if self.name is None else f"source {self.name}: "
        if self.left_out:
            what = "documents" if self.split.tail is None else "documents, of which only the beginning is learnt"
            yield f"{of}copies of held-out text, which is held out once and not learnt: {self.left_out:,} {what}"
        if self.left_elsewhere:
            where = "--val-data" if self.split == NOTHING else "another source"
            yield f"{of}not learnt, for their text is held out in {where}: {self.left_elsewhere:,} documents"

    def train(self, held: HeldOutDocuments | None = None) -> Iterator[Document]:
        """The documents to learn from, in their order; when they are through, `held` has those to validate on."""
        return train_documents(self._documents(), self.split, held, self.elsewhere)

    def validation(self) -> list[Document]:
        """The documents to validate on, in the order of their keys."""
        held: HeldOutDocuments = {}
        for _ in self.train(held):
            pass
        return in_order(held)

    def _documents(self) -> Iterator[Document]:
        """The documents once more.

        Raises:
            DataError: at the end, when they are not what they were.
        """
        digest = _TextDigest()
        for document in _documents(self.files, self.take, self.shards):
            digest.add(document)
            yield document
        if digest.hex() != self.hash:
            if self.recalled is not None:
                self.recalled.unlink(missing_ok=True)  # what it says of the files is not true
            raise DataError("the corpus changed while it was read", where="--data", hint="Run it again.")


def _documents(
    files: Iterable[Path],
    take: Take,
    shards: ShardIds | None,
    done: Callable[[int], None] = lambda _: None,
    notice: Say | None = None,
) -> Iterator[Document]:
    """What files hold: texts, or token ids."""
    return read_documents(files, take, done=done) if shards is None else read_ids(files, shards, done=done, notice=notice)


def divided(contents: Sequence[Contents], fraction: float, own: Sequence[Contents] = ()) -> tuple[list[Scan], list[Finding]]:
    """The two sides of sources, and the warnings about shares that whole documents do not make up.

    Args:
        contents: of each source that is learnt.
        fraction: the share of each that is held out, if there is no `own`.
        own: a held-out set of one's own, of which everything is held out.

    Returns:
        A scan for each of `contents`, then one for each of `own`.

    Raises:
        DataError: when nothing of a source is left to learn.
    """
    splits = [NOTHING if own else item.texts.split(fraction) for item in contents]
    held = [item.texts.held_keys(split) for item, split in zip(contents, splits, strict=True)]
    of_own = [item.texts.keys for item in own]
    scans = []
    for place, (item, split) in enumerate(zip(contents, splits, strict=True)):
        _require_whole(item, split)
        elsewhere = _shared(item.texts, split, [*held[:place], *held[place + 1 :], *of_own])
        _require_a_text(item, split, elsewhere)
        scans.append(_scan(item, split, elsewhere))
    scans += [_scan(item, EVERYTHING) for item in own]
    named = zip(contents, splits, strict=True)
    findings = (
        [] if own else [found for item, split in named for found in item.texts.findings(fraction, split, item.name or "")]
    )
    return scans, findings


def _shared(texts: Texts, split: Split, others: Sequence[Numbers]) -> frozenset[int]:
    """Keys of texts that others hold out, and that are not held out whole here."""
    taken = np.concatenate(others) if others else np.array([], np.uint64)
    return frozenset(map(int, np.setdiff1d(np.intersect1d(texts.keys, taken), texts.held_keys(split, whole=True))))


def _require_whole(item: Contents, split: Split) -> None:
    """Of a conversation no end is held out."""
    if split.tail is None or item.take.whole_texts:
        return
    raise DataError(
        "too few conversations to hold some of them out",
        where="--data",
        field=item.name,
        rule=rules.PREFLIGHT_024,
        expected="whole conversations that make up the share",
        found=f"{len(item.texts.keys):,} different ones",
        hint="Give more of them, or others to validate on with --val-data.",
    )


def _require_a_text(item: Contents, split: Split, elsewhere: frozenset[int]) -> None:
    if len(item.texts.held_keys(split, whole=True)) + len(elsewhere) < len(item.texts.keys):
        return
    raise DataError(
        "nothing is left to learn",
        where="--data",
        field=item.name,
        rule=rules.PREFLIGHT_025,
        expected="a text that is held out nowhere",
        found=f"{len(elsewhere):,} texts that are held out in {'--val-data' if split == NOTHING else 'another source'}",
    )


def _scan(item: Contents, split: Split, elsewhere: frozenset[int] = frozenset()) -> Scan:
    return Scan(
        files=item.files,
        hash=item.hash,
        text_bytes=item.text_bytes,
        split=split,
        take=item.take,
        shards=item.shards,
        left_out=item.texts.left_out(split),
        name=item.name,
        elsewhere=elsewhere,
        left_elsewhere=item.texts.documents_of(elsewhere),
        documents=item.documents,
        recalled=item.recalled,
    )


def scan_corpus(settings: DataSettings, take: Take = TEXTS, *, notice: Say, progress: StageProgress | None = None) -> Scan:
    """Read all documents of `settings.data`, as one pool, and split them by `settings.validation_fraction`.

    Raises:
        DataError: when they cannot be read, or when there are none.
    """
    wanted = [Wanted(name=None, paths=settings.data, take=take)]
    (scan,) = scan_sources(wanted, settings, notice=notice, progress=progress)
    return scan


@frozen(kw_only=True)
class Wanted:
    """What is to be read together."""

    name: str | None
    paths: tuple[str, ...]
    """Files, folders and globs; none stand for the standard library."""
    take: Take
    shards: ShardIds | None = None
    """What the ids mean, where the files are shards of them; None where they are texts."""


def scan_sources(
    learnt: Sequence[Wanted],
    settings: DataSettings,
    own: Sequence[Wanted] = (),
    *,
    unchanged: Unchanged | None = None,
    notice: Say,
    progress: StageProgress | None = None,
) -> list[Scan]:
    """Read all documents of sources, and divide them.

    A text that is not UTF-8 is left out, with a notice, unless the user named that very file. JSONL is data, of which
    nothing is left out.

    Args:
        learnt: the sources of `--data`.
        settings: how they are read and split.
        own: the sources of `--val-data`.
        unchanged: readings of files that need not be read again; without it all are read.
        notice: told of what was left out.
        progress: told of the bytes read.

    Raises:
        DataError: when they cannot be read, or when there are none.
    """
    wanted = [*learnt, *own]
    files = [files_of(item, settings, notice=notice) for item in wanted]
    read = [_read(item, found, unchanged) for item, found in zip(wanted, files, strict=True)]
    total = sum(_total_size(found) for found, known in zip(files, read, strict=True) if known is None)
    done = byte_counter(progress, "read", total if progress is not None else 0)
    pairs = zip(wanted, files, read, strict=True)
    contents = [known or read_source(item, found, unchanged, notice=notice, done=done) for item, found, known in pairs]
    for text in (text for known in read if known is not None for text in known.notes):
        notice(text)
    scans, findings = divided(contents[: len(learnt)], settings.validation_fraction, contents[len(learnt) :])
    for text in (text for scan in scans for text in scan.notices()):
        notice(text)
    for finding in findings:
        notice(f"warning: {finding}")
    if any(scan.split.tail is not None for scan in scans) and not findings:
        notice("the corpus is a single text: its tail is held out for validation")
    return scans


def files_of(wanted: Wanted, settings: DataSettings, *, notice: Say) -> list[Path]:
    """The files of a source.

    Raises:
        DataError: as `find_files`.
    """
    return find_files(wanted.paths, notice=notice, gitignore=settings.gitignore, shards=wanted.shards is not None)


def _read(wanted: Wanted, files: Sequence[Path], unchanged: Unchanged | None) -> Contents | None:
    return None if unchanged is None else recalled(wanted, files, unchanged)


def recalled(wanted: Wanted, files: Sequence[Path], unchanged: Unchanged) -> Contents | None:
    """What a source holds, by an earlier reading of the same files; None when one has changed, or there was none."""
    place = _place(wanted, unchanged)
    known = unchanged.recall(place, files)
    if known is None:
        return None
    return Contents(
        name=wanted.name,
        files=tuple(map(Path, known.kept)),
        hash=known.hash,
        text_bytes=known.text_bytes,
        texts=Texts.of(known.keys, known.sizes),
        take=wanted.take,
        shards=wanted.shards,
        notes=known.notes,
        documents=len(known.keys),
        recalled=place,
    )


def is_known(wanted: Wanted, unchanged: Unchanged) -> bool:
    """Whether there was an earlier reading of a source, whatever became of its files."""
    return unchanged.holds(_place(wanted, unchanged))


def _place(wanted: Wanted, unchanged: Unchanged) -> Path:
    ids = {} if wanted.shards is None else {"size": wanted.shards.size, "end": wanted.shards.end}
    return unchanged.place(paths=wanted.paths, take=wanted.take.fingerprint, ids=ids)


def read_source(
    wanted: Wanted,
    files: Sequence[Path],
    unchanged: Unchanged | None = None,
    *,
    notice: Say,
    done: Callable[[int], None] = lambda _: None,
) -> Contents:
    """Read the files of a source, and note in `unchanged` what they told; `notice` is told of what was left out.

    Raises:
        DataError: when they cannot be read, or have no document.
    """
    began = now()
    try:
        states = states_of(files)
    except OSError as error:
        raise unreadable(error) from error
    reading = Reading(wanted)
    for path in files:
        reading.read(path, done)
    for text in reading.notices():
        notice(text)
    contents = reading.contents()
    if unchanged is not None:
        keys, sizes = reading.keys.numbers
        kept = tuple(map(str, contents.files))
        told = Readout(
            kept=kept, hash=contents.hash, text_bytes=contents.text_bytes, notes=contents.notes, keys=keys, sizes=sizes
        )
        unchanged.keep(_place(wanted, unchanged), told, states, began=began)
    return contents


class Reading:
    """The documents of files as they are read: their hash and keys, and which of the files are taken how."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._take = wanted.take
        self._named = {Path(argument).resolve() for argument in wanted.paths}
        self.digest, self.keys = _TextDigest(), KeyScan()
        self.kept: list[Path] = []
        self._not_utf8: list[Path] = []
        self._no_records: list[Path] = []
        self._json: dict[Form, int] = {}
        self._of_shards: list[str] = []
        self._notebooks = self._tables = self._of_records = 0

    def read(self, path: Path, done: Callable[[int], None] = lambda _: None) -> None:
        """Take all documents of a file.

        Raises:
            DataError: for what cannot be read, and for data and named files that are not what they should be.
        """
        shards = self._wanted.shards
        form = self.form(path) if shards is None else "array"
        try:
            for document in _documents([path], self._take, shards, done, self._of_shards.append):
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
        self._tables += form == "text" and unpacked_name(path).suffix.lower() in (".csv", ".tsv")
        self._of_records += form != "text"
        return form

    def notices(self) -> Iterator[str]:
        """What was left out, and what was taken for what."""
        yield from self._of_shards
        if self._not_utf8:
            yield f"files left out because they are not UTF-8: {counted(self._not_utf8)}"
        if self._no_records:
            yield f"files left out because they hold no records: {counted(self._no_records)}"
        if self._json:
            taken = (f"{self._json[form]} {how}" for form, how in _TAKEN.items() if form in self._json)
            yield f".json files: {', '.join(taken)}"
        if self._notebooks:
            yield f".ipynb files: {self._notebooks} taken as the JSON that they are; nbconvert makes scripts of them"
        if self._tables:
            yield f".csv and .tsv files: {self._tables} taken as text as they stand, not by column"
        if self.kept and not self._of_records and isinstance(self._take, TextRecords) and self._take.field is not None:
            where = ", ".join(self._wanted.paths)
            yield f"{where}: the text field {self._take.field!r} means nothing here: all files are texts as they stand"

    def contents(self) -> Contents:
        """What was read.

        Raises:
            DataError: when there was no document.
        """
        if self._no_records and not self.kept:
            raise DataError(
                "none of the files holds records",
                where="--data",
                field=self._wanted.name or "",
                rule=rules.PREFLIGHT_025,
                expected="JSON lines, a JSON array of records, Parquet or Arrow",
                found=f"texts: {counted(self._no_records)}",
                hint='Plain texts are for --objective causal-lm or fim, or a source of kind = "text" beside one of records.',
            )
        try:
            texts = self.keys.texts()
        except DataError as error:
            found = f"none in {', '.join(self._wanted.paths) or 'the standard library'}"
            raise error.amend(field=self._wanted.name or "", found=found) from error
        return Contents(
            name=self._wanted.name,
            files=tuple(self.kept),
            hash=self.digest.hex(),
            text_bytes=self.digest.text_bytes,
            texts=texts,
            take=self._take,
            shards=self._wanted.shards,
            notes=tuple(self.notices()),
            documents=int(texts.copies.sum()) + len(texts.keys),
        )


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

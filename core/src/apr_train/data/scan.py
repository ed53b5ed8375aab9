"""One reading of all documents before any is encoded: their hash, their size, and which of them are held out.

The side of a document is decided by a hash of its content, so that no text is on both sides. A document's key is a 64-bit
BLAKE2b of its words, white space apart: copies that differ only in line endings or in indentation share it. Held out are
the keys below a threshold, which the scan of all keys adjusts so that neither side is empty: when no key is low enough the
lowest is held out, and when all are the highest is not. A corpus of one distinct text keeps its tail for validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from attrs import field, frozen

from apr_train.data.documents import PIECE, Document, NotUtf8Error, is_jsonl, read_documents
from apr_train.data.protocols import StageProgress, byte_counter
from apr_train.data.sources import counted, find_files
from apr_train.errors import DataError
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings

Side = Literal["train", "validation"]
_KEYS = 1 << 64


@frozen(kw_only=True)
class Split:
    """The rule that sends a document to its side."""

    threshold: int
    """Keys below it are held out."""
    tail_fraction: float | None = None
    """Set when all documents are the same text: this share of it, at its end, is held out."""


class KeyScan:
    """The least and the greatest key of all documents, which is all that a split needs: constant memory."""

    def __init__(self) -> None:
        self._lowest, self._highest = _KEYS, -1

    def add(self, key: int) -> None:
        """Take note of one document's key."""
        self._lowest, self._highest = min(self._lowest, key), max(self._highest, key)

    def split(self, fraction: float) -> Split:
        """The rule that holds out about `fraction` of the documents, and at least one.

        Raises:
            DataError: when there was no document.
        """
        if self._highest < 0:
            raise DataError("the corpus is empty", where="--data", expected="at least one document with text in it")
        threshold = int(fraction * _KEYS)
        if self._lowest == self._highest:
            return Split(threshold=threshold, tail_fraction=fraction)
        return Split(threshold=min(max(threshold, self._lowest + 1), self._highest))


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
        if split.tail_fraction is not None:
            head, tail = _cut(document, split.tail_fraction)
            held.setdefault(key, tail)
            yield head
        elif key < split.threshold:
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


def _cut(document: Document, tail_fraction: float) -> tuple[Document, Document]:
    """Head and tail of a text, cut after a newline when one is near."""
    raw = bytes(document.utf8)
    target = round(_length(raw) * (1 - tail_fraction))
    while 0 < target < len(raw) and raw[target] & 0xC0 == 0x80:  # inside a character
        target -= 1
    newline = raw.rfind(b"\n", 0, target) + 1
    cut = newline if newline > target // 2 else target
    head, tail = document.part(0, cut), document.part(cut)
    if head.is_blank() or tail.is_blank():
        hint = "Give more text: one document must be long enough to learn from its head and to validate on its tail."
        found = repr(next(document.pieces())[:80])
        raise DataError("the only document is too short to be split", where=document.source, found=found, hint=hint)
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
        for document in read_documents(self.files):
            digest.add(document)
            yield document
        if digest.hex() != self.hash:
            raise DataError("the corpus changed while it was read", where="--data", hint="Run it again.")


def scan_corpus(settings: DataSettings, *, notice: Say, progress: StageProgress | None = None) -> Scan:
    """Read all documents of `settings.data` once, and split them by `settings.validation_fraction`.

    A text that is not UTF-8 is left out, with a notice, unless the user named that very file. JSONL is data, of which
    nothing is left out.

    Raises:
        DataError: when they cannot be read, or when there are none.
    """
    files = find_files(settings.data, notice=notice)
    done = byte_counter(progress, "read", _total_size(files) if progress is not None else 0)
    digest, keys = _TextDigest(), KeyScan()
    kept: list[Path] = []
    left_out: list[Path] = []
    for path in files:
        try:
            for document in read_documents([path], done=done):
                digest.add(document)
                keys.add(split_key(document))
            kept.append(path)
        except NotUtf8Error:
            if is_jsonl(path) or _is_named(path, settings):
                raise
            left_out.append(path)
    if left_out:
        notice(f"files left out because they are not UTF-8: {counted(left_out)}")
    split = keys.split(settings.validation_fraction)
    if split.tail_fraction is not None:
        notice("the corpus is a single text: its tail is held out for validation")
    return Scan(files=tuple(kept), hash=digest.hex(), text_bytes=digest.text_bytes, split=split)


def _is_named(path: Path, settings: DataSettings) -> bool:
    return any(path.resolve() == Path(argument).resolve() for argument in settings.data)


def _total_size(files: list[Path]) -> int:
    try:
        return sum(path.stat().st_size for path in files)
    except OSError as error:
        raise DataError("cannot be read", where=error.filename, found=error.strerror) from error


class _TextDigest:
    """A hash of texts in their order; the lengths keep two texts apart from their concatenation."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=32)
        self.text_bytes = 0

    def add(self, document: Document) -> None:
        raw = document.utf8
        self._hash.update(len(raw).to_bytes(8, "little"))
        self._hash.update(raw)
        self.text_bytes += len(raw)

    def hex(self) -> str:
        return self._hash.hexdigest()

"""One reading of all documents before any is encoded: their hash, their size, and how they are split."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from attrs import field, frozen

from apr_train.data.documents import Document, NotUtf8Error, is_jsonl, read_documents
from apr_train.data.protocols import Notice, Progress, byte_counter
from apr_train.data.sources import counted, find_files
from apr_train.data.split import HeldOutDocuments, KeyScan, Split, held_out, split_key, train_documents
from apr_train.errors import DataError
from apr_train.run.settings import DataSettings


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
        return held_out(self._documents(), self.split)

    def _documents(self) -> Iterator[Document]:
        """The documents once more.

        Raises:
            DataError: at the end, when they are not what they were.
        """
        digest = _TextDigest()
        for document in read_documents(self.files):
            digest.add(document.text)
            yield document
        if digest.hex() != self.hash:
            raise DataError("the corpus changed while it was read", where="--data", hint="Run it again.")


def scan_corpus(settings: DataSettings, *, notice: Notice, progress: Progress | None = None) -> Scan:
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
                digest.add(document.text)
                keys.add(split_key(document.text))
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

    def add(self, text: str) -> None:
        raw = text.encode("utf-8")
        self._hash.update(len(raw).to_bytes(8, "little"))
        self._hash.update(raw)
        self.text_bytes += len(raw)

    def hex(self) -> str:
        return self._hash.hexdigest()

"""One reading of all documents before any is encoded: their hash, their size, and how they are split."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from attrs import field, frozen

from apr_train.data.documents import Document, read_documents
from apr_train.data.files import find_files
from apr_train.data.protocols import Notice
from apr_train.data.settings import CorpusSettings
from apr_train.data.split import KeySurvey, Split, held_out, split_key, train_documents
from apr_train.errors import DataError


@frozen(kw_only=True)
class Survey:
    """What one reading of all documents tells, before anything is encoded."""

    files: tuple[Path, ...] = field(repr=False)
    hash: str
    text_bytes: int
    split: Split

    def train(self) -> Iterator[Document]:
        """The documents to learn from, in their order."""
        return train_documents(self._documents(), self.split)

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


def survey_corpus(settings: CorpusSettings, *, notice: Notice) -> Survey:
    """Read all documents once: their hash, their size, and how they are split.

    Raises:
        DataError: when they cannot be read, or when there are none.
    """
    files = tuple(find_files(settings.data, notice=notice))
    digest, keys = _TextDigest(), KeySurvey()
    for document in read_documents(files):
        digest.add(document.text)
        keys.add(split_key(document.text))
    split = keys.split(settings.validation_fraction)
    if split.tail_fraction is not None:
        notice("the corpus is a single text: its tail is held out for validation")
    return Survey(files=files, hash=digest.hex(), text_bytes=digest.text_bytes, split=split)


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

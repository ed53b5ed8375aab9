"""Documents of token ids that somebody else made, and how they are encoded: as they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from apr_train.data.documents import Document
from apr_train.data.shards import Ids, shard_documents
from apr_train.data.tokens import TokenWriter
from apr_train.errors import DataError, Finding
from apr_train.run.events import Say


@frozen(kw_only=True)
class ShardIds:
    """What the ids of a shard mean."""

    size: int
    """The tokenizer's: all ids are less."""
    end: int
    """The id that lies between two documents."""


@frozen
class IdDocument(Document):
    """Ids instead of a text: `utf8` holds them, in 4 bytes each, little-endian."""

    @property
    def ids(self) -> Ids:
        """`[tokens]`, without the end of text."""
        return np.frombuffer(self.utf8, "<u4")

    @property
    def key(self) -> int:
        """The 64-bit number that decides the side, as `split.split_key` of a text."""
        return int.from_bytes(blake2b(self.utf8, digest_size=8, person=b"apr-ids").digest(), "little")

    def cut(self, fraction: float) -> tuple[IdDocument, IdDocument]:
        """Head and tail, between two ids.

        Raises:
            DataError: when one of them would be empty.
        """
        place = round(len(self.ids) * (1 - fraction))
        if not 0 < place < len(self.ids):
            raise DataError("too short to be split into a head and a tail", where=self.source, found=f"{len(self.ids)} tokens")
        head, tail = self.part(0, 4 * place), self.part(4 * place)
        return IdDocument(head.source, head.utf8), IdDocument(tail.source, tail.utf8)


def read_ids(
    files: Iterable[Path], shards: ShardIds, *, done: Callable[[int], None], notice: Say | None = None
) -> Iterator[IdDocument]:
    """All documents of shards; `done` is told of the bytes of each file, `notice` of one without an end of text.

    Raises:
        DataError: as `shard_documents`.
    """
    for path in files:
        for number, ids in enumerate(shard_documents(path, size=shards.size, end=shards.end, notice=notice)):
            yield IdDocument(f"{path}[{number}]", np.asarray(ids).astype("<u4").tobytes())
        done(path.stat().st_size)


@frozen
class IdEncoder:
    """Ids as they are, each document with its end; every token is a target."""

    end: int

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """That the ids are given, and what ends a document."""
        return {"given": "ids", "separator": self.end}

    def encode(self, documents: Iterable[Document], writer: TokenWriter, *, done: Callable[[int], None]) -> None:
        """Append documents to a token file.

        Raises:
            DataError: for a document that holds a text.
        """
        for document in documents:
            if not isinstance(document, IdDocument):
                raise DataError("a text where token ids are wanted", where=document.source)
            writer.append(document.ids)
            writer.end_document(self.end)
            done(len(document.utf8))

    def findings(self, counts: Mapping[str, int]) -> list[Finding]:
        """Nothing happens to ids on the way."""
        return []

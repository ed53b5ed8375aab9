"""Documents to token ids: what an objective's encoder is, and the encoder of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any, Protocol, TypeVar

from attrs import field, frozen

from apr_train import rules
from apr_train.data.chunks import Chunk, chunks
from apr_train.data.documents import Document
from apr_train.data.protocols import TokenizerLike
from apr_train.data.special_tokens import DocumentEnds, SpelledTokens
from apr_train.data.split import Side
from apr_train.data.tokens import TokenWriter
from apr_train.errors import Finding
from apr_train.run.settings import DataSettings

T = TypeVar("T")
_BATCH_BYTES = 1 << 20
"""Text that is encoded at once; a tokenizer needs some 170 times as much memory."""
SPELLED, FORCED_CUTS = "spelled", "forced_cuts"
"""Counts of a token file: special tokens that the text spells; cuts inside a word, of a text that is encoded in parts."""


@frozen(kw_only=True)
class EncodeOptions:
    """What an objective may need to know to encode the documents of a source."""

    tokenizer: TokenizerLike = field(repr=False)
    settings: DataSettings
    """Of the run, as far as they are decided."""
    sequence_length: int
    """Tokens in a row."""
    seed: int
    """Seed of whatever is drawn at random for the side that is learnt."""
    side: Side
    """What is held out is drawn by a seed that does not depend on the run's."""
    fim_tokens: Mapping[str, str] = field(factory=dict)
    """The family's: see `FamilyInfo.fim_tokens`."""


class Encoder(Protocol):
    """How the documents of a source become ids, and which of these are targets."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """JSON-able: all that decides the ids beside the text and the tokenizer; part of the cache's key."""
        ...

    def encode(self, documents: Iterable[Document], writer: TokenWriter, *, done: Callable[[int], None]) -> None:
        """Append documents to a token file; `done` is told of the bytes of documents that are through.

        Raises:
            DataError: for a document that cannot be encoded, naming it.
            TokenizerError: for an id outside the vocabulary.
        """
        ...

    def findings(self, counts: Mapping[str, int]) -> list[Finding]:
        """What is to be said about what happened to documents, by the counts of both sides' token files."""
        ...


@frozen
class TextEncoder:
    """Texts as they are, each between its ends; every token is a target."""

    tokenizer: TokenizerLike = field(repr=False)
    ends: DocumentEnds
    parse_special: bool

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The ends, and how special tokens are read."""
        return {"start": self.ends.start, "separator": self.ends.end, "parse_special": self.parse_special}

    def encode(self, documents: Iterable[Document], writer: TokenWriter, *, done: Callable[[int], None]) -> None:
        """Append documents to a token file, a long one chunk by chunk."""
        spelled = SpelledTokens(self.tokenizer.special_tokens)
        for batch in in_batches(self._parts(documents), lambda part: part.text_bytes, _BATCH_BYTES):
            texts = [part.chunk.text for part in batch]
            for part, ids in zip(batch, self.tokenizer.encode_batch(texts, parse_special=self.parse_special), strict=True):
                if part.begins:
                    writer.append(self.ends.start)
                writer.append(ids, text_bytes=part.text_bytes)
                writer.count(SPELLED, spelled.count(part.chunk.text))
                writer.count(FORCED_CUTS, int(part.chunk.forced))
                if part.ends:
                    writer.end_document(self.ends.end)
            done(sum(part.text_bytes for part in batch))

    def findings(self, counts: Mapping[str, int]) -> list[Finding]:
        """What of the text became other tokens than one may think."""
        return [*spelled_findings(counts.get(SPELLED, 0), self.parse_special), *_cut(counts.get(FORCED_CUTS, 0))]

    def _parts(self, documents: Iterable[Document]) -> Iterator[_Part]:
        for document in documents:
            parts = chunks(document.pieces(), self.tokenizer, parse_special=self.parse_special)
            begins = True
            for chunk, following in pairwise(chain(parts, [None])):
                if chunk is not None:
                    yield _Part(chunk, begins, following is None, len(chunk.text.encode("utf-8")))
                begins = False


@frozen
class _Part:
    """A chunk of a document."""

    chunk: Chunk
    begins: bool
    ends: bool
    text_bytes: int


def in_batches(items: Iterable[T], size: Callable[[T], int], most: int, *, count: int | None = None) -> Iterator[list[T]]:
    """Consecutive items together, as many as come to `most` by their sizes, and no more than `count`; a larger one alone."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and (total + size(item) > most or len(batch) == count):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def spelled_findings(number: int, parse_special: bool) -> list[Finding]:
    """A warning of text that spells special tokens, and what became of it."""
    if not number:
        return []
    hint = "Leave --parse-special out." if parse_special else "--parse-special makes control tokens of them."
    return [
        Finding(
            rule=rules.PREFLIGHT_023,
            subject="--data",
            problem="the text spells special tokens of the tokenizer",
            found=f"{number:,} of them, learnt as {'control tokens' if parse_special else 'text'}",
            hint=hint,
            severity="warning",
        )
    ]


def _cut(number: int) -> list[Finding]:
    if not number:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_027,
            subject="--data",
            problem="a megabyte of text without a place where the tokenizer ends a word is cut all the same",
            found=f"{number:,} cuts, whose tokens may differ from those of the whole text",
            severity="warning",
        )
    ]

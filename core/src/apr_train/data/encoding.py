"""Documents into a token file, many at a time so that the tokenizer's threads have work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from attrs import frozen

from apr_train.data.chunks import pieces
from apr_train.data.documents import Document
from apr_train.data.protocols import TokenizerLike
from apr_train.data.token_writer import TokenWriter

_BATCH_CHARACTERS = 1 << 22


@frozen
class _Piece:
    text: str
    ends_document: bool
    text_bytes: int


def encode_documents(
    documents: Iterable[Document],
    tokenizer: TokenizerLike,
    writer: TokenWriter,
    *,
    separator: int,
    done: Callable[[int], None],
) -> None:
    """Append documents to a token file, each followed by the separator; `done` is told of the bytes of text encoded."""
    for batch in _batches(_pieces(documents, tokenizer)):
        for piece, ids in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
            writer.append(ids, text_bytes=piece.text_bytes)
            if piece.ends_document:
                writer.end_document(separator)
        done(sum(piece.text_bytes for piece in batch))


def _pieces(documents: Iterable[Document], tokenizer: TokenizerLike) -> Iterator[_Piece]:
    for document in documents:
        texts = list(pieces(document.text, tokenizer))
        for number, text in enumerate(texts, start=1):
            yield _Piece(text, number == len(texts), len(text.encode("utf-8")))


def _batches(stream: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for piece in stream:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

"""A corpus: read, split by document, and tokenised once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from attrs import frozen

from apr_train.data.cache import cache_folder, cache_key
from apr_train.data.chunks import pieces
from apr_train.data.documents import Document
from apr_train.data.protocols import Notice, Progress, TokenizerLike, byte_counter
from apr_train.data.scan import Survey, survey_corpus
from apr_train.data.sources import describe
from apr_train.data.special_tokens import separator_id
from apr_train.data.split import HeldOut, Side, in_order
from apr_train.data.tokens import VERSION, DamagedTokenFile, TokenFile, TokenWriter
from apr_train.errors import DataError
from apr_train.run.corpus_settings import CorpusSettings

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


_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Corpus:
    """Both sides of a tokenised corpus."""

    train: TokenFile
    """What is learnt from."""
    validation: TokenFile
    """What is held out."""
    hash: str
    """Hex digest of the texts in their order; independent of where they lie and of the tokenizer."""
    description: str
    """Where the text comes from, for the model card."""

    @property
    def max_token_id(self) -> int:
        """The largest id on either side; must be below the model's vocabulary."""
        return max(self.train.max_token_id, self.validation.max_token_id)

    @property
    def bytes_per_token(self) -> float:
        """Of the validation side; nats per token / ln 2 / this = bits per byte."""
        return self.validation.bytes_per_token


def load_corpus(
    settings: CorpusSettings,
    tokenizer: TokenizerLike,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Corpus:
    """Open the tokens of a corpus, making them first if they are not in the cache.

    Args:
        settings: which text, and how it is split.
        tokenizer: its fingerprint is part of the cache's key.
        cache_dir: instead of `cache_folder()`.
        progress: told of the bytes read, then of the bytes of text encoded.
        notice: told of what was left out or mended; a log warning otherwise.

    Raises:
        DataError: when the text cannot be read, or the cache cannot be written.
        TokenizerError: when the tokenizer has no end-of-text token.
    """
    notice = notice or _log.warning
    survey = survey_corpus(settings, notice=notice, progress=progress)
    folder = (cache_dir or cache_folder()) / "tokens"
    separator = separator_id(tokenizer)
    keys = _side_keys(settings, survey, tokenizer, separator)
    paths = {side: folder / f"{key}.tokens" for side, key in keys.items()}
    sides = {side: _cached(paths[side], keys[side], tokenizer.size, notice) for side in keys}
    if any(tokens is None for tokens in sides.values()):
        _encode(survey, tokenizer, separator, keys, paths, progress)
        sides = {side: _cached(paths[side], keys[side], tokenizer.size, notice) for side in keys}
    train, validation = sides["train"], sides["validation"]
    if train is None or validation is None:
        raise DataError("the token cache cannot be read back", where=folder, hint="Is the disk full, or failing?")
    return Corpus(train=train, validation=validation, hash=survey.hash, description=describe(settings.data))


def held_out_documents(settings: CorpusSettings, *, limit: int | None = None) -> list[Document]:
    """The documents of the validation side (or the first `limit`), in the order of their tokens."""
    survey = survey_corpus(settings, notice=_log.debug)  # load_corpus says it aloud
    return survey.validation()[:limit]


def _side_keys(settings: CorpusSettings, survey: Survey, tokenizer: TokenizerLike, separator: int) -> dict[Side, str]:
    shared = {
        "version": VERSION,
        "corpus": survey.hash,
        "fraction": settings.validation_fraction,
        "tokenizer": tokenizer.fingerprint,
        "size": tokenizer.size,
        "separator": separator,
    }
    sides: tuple[Side, ...] = ("train", "validation")
    return {side: cache_key(side=side, **shared) for side in sides}


def _cached(path: Path, key: str, size: int, notice: Notice) -> TokenFile | None:
    try:
        return TokenFile.open(path, key=key, size=size)
    except FileNotFoundError:
        return None
    except (DamagedTokenFile, OSError) as error:
        notice(f"{path}: the cached tokens are damaged ({error}); they are made again")
        return None


def _encode(
    survey: Survey,
    tokenizer: TokenizerLike,
    separator: int,
    keys: dict[Side, str],
    paths: dict[Side, Path],
    progress: Progress | None,
) -> None:
    """Make both token files, in one more reading; each appears under its name only when it is whole."""
    held: HeldOut = {}
    done = byte_counter(progress, "tokenise", survey.text_bytes)
    sides: tuple[Side, ...] = ("train", "validation")  # in this order: only all of the one side says what the other is
    for side in sides:
        documents: Iterable[Document] = survey.train(held) if side == "train" else in_order(held)
        with TokenWriter(paths[side], key=keys[side], size=tokenizer.size) as writer:
            encode_documents(documents, tokenizer, writer, separator=separator, done=done)
            writer.finish()

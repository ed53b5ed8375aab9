"""A corpus: read, split by document, and tokenised once."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from attrs import frozen

from apr_train.data.cache import cache_folder, cache_key
from apr_train.data.documents import Document
from apr_train.data.protocols import StageProgress, TokenizerLike, byte_counter
from apr_train.data.scan import SPLIT_RULE, HeldOutDocuments, Scan, Side, in_order, scan_corpus
from apr_train.data.sources import describe_sources
from apr_train.data.special_tokens import separator_id
from apr_train.data.tokens import VERSION, DamagedTokenFile, TokenFile, TokenWriter
from apr_train.errors import DataError
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings

CHUNK = 1 << 18
"""Characters of a chunk, about."""
_BATCH_CHARACTERS = 1 << 22
_WINDOW = 256
_ATTEMPTS = 8
_CUT = re.compile(r"\n(?=\S)")
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
        """Bytes of text per token of the validation side; nats per token / ln 2 / this = bits per byte."""
        return self.validation.bytes_per_token


def load_corpus(
    settings: DataSettings,
    tokenizer: TokenizerLike,
    *,
    cache_dir: Path | None = None,
    progress: StageProgress | None = None,
    notice: Say | None = None,
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
    scan = scan_corpus(settings, notice=notice, progress=progress)
    folder = (cache_dir or cache_folder()) / "tokens"
    separator = separator_id(tokenizer)
    keys = _side_keys(settings, scan, tokenizer, separator)
    paths = {side: folder / f"{key}.tokens" for side, key in keys.items()}
    sides = {side: _cached(paths[side], keys[side], tokenizer.size, notice) for side in keys}
    if any(tokens is None for tokens in sides.values()):
        _encode(scan, tokenizer, separator, keys, paths, progress)
        sides = {side: _cached(paths[side], keys[side], tokenizer.size, notice) for side in keys}
    train, validation = sides["train"], sides["validation"]
    if train is None or validation is None:
        raise DataError("the token cache cannot be read back", where=folder, hint="Is the disk full, or failing?")
    return Corpus(train=train, validation=validation, hash=scan.hash, description=describe_sources(settings.data))


def held_out_documents(settings: DataSettings) -> list[Document]:
    """The documents of the validation side, in the order of their tokens.

    Raises:
        DataError: when the text cannot be read.
    """
    scan = scan_corpus(settings, notice=_log.debug)  # load_corpus says it aloud
    return scan.validation()


def _side_keys(settings: DataSettings, scan: Scan, tokenizer: TokenizerLike, separator: int) -> dict[Side, str]:
    shared = {
        "version": VERSION,
        "corpus": scan.hash,
        "fraction": settings.validation_fraction,
        "split": SPLIT_RULE,
        "tokenizer": tokenizer.fingerprint,
        "size": tokenizer.size,
        "separator": separator,
    }
    sides: tuple[Side, ...] = ("train", "validation")
    return {side: cache_key(side=side, **shared) for side in sides}


def _cached(path: Path, key: str, size: int, notice: Say) -> TokenFile | None:
    try:
        return TokenFile.open(path, key=key, size=size)
    except FileNotFoundError:
        return None
    except (DamagedTokenFile, OSError) as error:
        notice(f"{path}: the cached tokens are damaged ({error}); they are made again")
        return None


def _encode(
    scan: Scan,
    tokenizer: TokenizerLike,
    separator: int,
    keys: dict[Side, str],
    paths: dict[Side, Path],
    progress: StageProgress | None,
) -> None:
    """Make both token files, in one more reading; each appears under its name only when it is whole."""
    held: HeldOutDocuments = {}
    done = byte_counter(progress, "tokenise", scan.text_bytes)
    sides: tuple[Side, ...] = ("train", "validation")  # in this order: only all of the one side says what the other is
    for side in sides:
        documents: Iterable[Document] = scan.train(held) if side == "train" else in_order(held)
        with TokenWriter(paths[side], key=keys[side], size=tokenizer.size) as writer:
            _encode_documents(documents, tokenizer, writer, separator=separator, done=done)
            writer.finish()


@frozen
class _Chunk:
    text: str
    ends_document: bool
    text_bytes: int


def _encode_documents(
    documents: Iterable[Document],
    tokenizer: TokenizerLike,
    writer: TokenWriter,
    *,
    separator: int,
    done: Callable[[int], None],
) -> None:
    """Append documents to a token file, each followed by the separator; `done` is told of the bytes of text encoded."""
    for batch in _batches(_chunks(documents, tokenizer)):
        for chunk, ids in zip(batch, tokenizer.encode_batch([chunk.text for chunk in batch]), strict=True):
            writer.append(ids, text_bytes=chunk.text_bytes)
            if chunk.ends_document:
                writer.end_document(separator)
        done(sum(chunk.text_bytes for chunk in batch))


def _chunks(documents: Iterable[Document], tokenizer: TokenizerLike) -> Iterator[_Chunk]:
    for document in documents:
        texts = list(chunks(document.text, tokenizer))
        for number, text in enumerate(texts, start=1):
            yield _Chunk(text, number == len(texts), len(text.encode("utf-8")))


def _batches(stream: Iterable[_Chunk]) -> Iterator[list[_Chunk]]:
    batch: list[_Chunk] = []
    size = 0
    for chunk in stream:
        batch.append(chunk)
        size += len(chunk.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def chunks(text: str, tokenizer: TokenizerLike, *, size: int = CHUNK) -> Iterator[str]:
    """Consecutive parts of a text, of `size` characters or somewhat more, that encode to the same tokens as the whole.

    One long file would otherwise be encoded by one thread, with some hundred bytes of memory for each of its tokens. A cut
    is made only after a newline, before something that is not white space, and only where the tokenizer itself confirms, on
    the text around it, that the cut changes nothing; a text without such a place is one chunk.
    """
    begin = 0
    while len(text) - begin > 2 * size:
        cut = _safe_cut(text, begin + size, tokenizer)
        if cut is None:
            break
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _safe_cut(text: str, start: int, tokenizer: TokenizerLike) -> int | None:
    for attempt, match in enumerate(_CUT.finditer(text, start)):
        if attempt == _ATTEMPTS:
            return None
        cut = match.end()
        left, right = text[max(0, cut - _WINDOW) : cut], text[cut : cut + _WINDOW]
        whole, before, after = tokenizer.encode_batch([left + right, left, right])
        if whole == before + after:
            return cut
    return None

"""A corpus: read, split by document, and tokenised once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path

from attrs import frozen

from apr_train import rules
from apr_train.data.cache import cache_folder, cache_key
from apr_train.data.chunks import Chunk, chunks
from apr_train.data.documents import Document
from apr_train.data.protocols import StageProgress, TokenizerLike, byte_counter
from apr_train.data.scan import SPLIT_RULE, HeldOutDocuments, Scan, Side, in_order, scan_corpus
from apr_train.data.sources import describe_sources
from apr_train.data.special_tokens import DocumentEnds, SpelledTokens, decoder_ends
from apr_train.data.tokens import VERSION, DamagedTokenFile, TokenFile, TokenWriter
from apr_train.errors import DataError, Finding
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings

_BATCH_BYTES = 1 << 20
"""Text that is encoded at once; a tokenizer needs some 170 times as much memory."""
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
    ends: DocumentEnds | None = None,
    cache_dir: Path | None = None,
    progress: StageProgress | None = None,
    notice: Say | None = None,
) -> Corpus:
    """Open the tokens of a corpus, making them first if they are not in the cache.

    Args:
        settings: which text, and how it is split.
        tokenizer: its fingerprint is part of the cache's key.
        ends: what stands around each document, as the objective says; a decoder's without it.
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
    ends = ends or decoder_ends(tokenizer)
    keys = _side_keys(settings, scan, tokenizer, ends)
    paths = {side: folder / f"{key}.tokens" for side, key in keys.items()}
    sides = {side: _cached(paths[side], keys[side], tokenizer.size, notice) for side in keys}
    if any(tokens is None for tokens in sides.values()):
        _encode(scan, _Encoding(tokenizer, ends, settings.parse_special), keys, paths, progress)
        sides = {side: _cached(paths[side], keys[side], tokenizer.size, notice) for side in keys}
    train, validation = sides["train"], sides["validation"]
    if train is None or validation is None:
        raise DataError("the token cache cannot be read back", where=folder, hint="Is the disk full, or failing?")
    for finding in _findings(train, validation, settings):
        notice(f"warning: {finding}")
    return Corpus(train=train, validation=validation, hash=scan.hash, description=describe_sources(settings.data))


def held_out_documents(settings: DataSettings) -> list[Document]:
    """The documents of the validation side, in the order of their tokens.

    Raises:
        DataError: when the text cannot be read.
    """
    scan = scan_corpus(settings, notice=_log.debug)  # load_corpus says it aloud
    return scan.validation()


def _side_keys(settings: DataSettings, scan: Scan, tokenizer: TokenizerLike, ends: DocumentEnds) -> dict[Side, str]:
    shared = {
        "version": VERSION,
        "corpus": scan.hash,
        "fraction": settings.validation_fraction,
        "split": SPLIT_RULE,
        "tokenizer": tokenizer.fingerprint,
        "size": tokenizer.size,
        "start": ends.start,
        "separator": ends.end,
        "parse_special": settings.parse_special,
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


def _findings(train: TokenFile, validation: TokenFile, settings: DataSettings) -> list[Finding]:
    """What of the text became other tokens than one may think."""
    findings = []
    if spelled := train.spelled + validation.spelled:
        hint = "--parse-special makes control tokens of them." if not settings.parse_special else "Leave --parse-special out."
        findings.append(
            Finding(
                rule=rules.PREFLIGHT_023,
                subject="--data",
                problem="the text spells special tokens of the tokenizer",
                found=f"{spelled:,} of them, learnt as {'control tokens' if settings.parse_special else 'text'}",
                hint=hint,
                severity="warning",
            )
        )
    if cuts := train.forced_cuts + validation.forced_cuts:
        findings.append(
            Finding(
                rule=rules.PREFLIGHT_027,
                subject="--data",
                problem="a megabyte of text without a place where the tokenizer ends a word is cut all the same",
                found=f"{cuts:,} cuts, whose tokens may differ from those of the whole text",
                severity="warning",
            )
        )
    return findings


@frozen
class _Encoding:
    """How documents become ids."""

    tokenizer: TokenizerLike
    ends: DocumentEnds
    parse_special: bool


def _encode(
    scan: Scan, encoding: _Encoding, keys: dict[Side, str], paths: dict[Side, Path], progress: StageProgress | None
) -> None:
    """Make both token files, in one more reading; each appears under its name only when it is whole."""
    held: HeldOutDocuments = {}
    done = byte_counter(progress, "tokenise", scan.text_bytes)
    sides: tuple[Side, ...] = ("train", "validation")  # in this order: only all of the one side says what the other is
    for side in sides:
        documents: Iterable[Document] = scan.train(held) if side == "train" else in_order(held)
        with TokenWriter(paths[side], key=keys[side], size=encoding.tokenizer.size) as writer:
            _encode_documents(documents, encoding, writer, done=done)
            writer.finish()


@frozen
class _Part:
    """A chunk of a document."""

    chunk: Chunk
    begins: bool
    ends: bool
    text_bytes: int


def _encode_documents(
    documents: Iterable[Document], encoding: _Encoding, writer: TokenWriter, *, done: Callable[[int], None]
) -> None:
    """Append documents to a token file, each between its ends; `done` is told of the bytes of text encoded."""
    tokenizer, ends = encoding.tokenizer, encoding.ends
    spelled = SpelledTokens(tokenizer.special_tokens)
    for batch in _batches(_parts(documents, encoding)):
        texts = [part.chunk.text for part in batch]
        for part, ids in zip(batch, tokenizer.encode_batch(texts, parse_special=encoding.parse_special), strict=True):
            if part.begins:
                writer.append(ends.start)
            count = spelled.count(part.chunk.text)
            writer.append(ids, text_bytes=part.text_bytes, spelled=count, forced_cuts=int(part.chunk.forced))
            if part.ends:
                writer.end_document(ends.end)
        done(sum(part.text_bytes for part in batch))


def _parts(documents: Iterable[Document], encoding: _Encoding) -> Iterator[_Part]:
    for document in documents:
        parts = chunks(document.pieces(), encoding.tokenizer, parse_special=encoding.parse_special)
        begins = True
        for chunk, following in pairwise(chain(parts, [None])):
            if chunk is not None:
                yield _Part(chunk, begins, following is None, len(chunk.text.encode("utf-8")))
            begins = False


def _batches(stream: Iterable[_Part]) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    size = 0
    for part in stream:
        if batch and size + part.text_bytes > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part.text_bytes
    if batch:
        yield batch

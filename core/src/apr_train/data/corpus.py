"""A corpus: read, split by document, and tokenised once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import field, frozen

from apr_train.data.cache import cache_folder, cache_key
from apr_train.data.documents import TEXTS, Document, Take
from apr_train.data.encoding import EncodeOptions, Encoder
from apr_train.data.objectives import OBJECTIVES, Objective
from apr_train.data.protocols import StageProgress, TokenizerLike, byte_counter
from apr_train.data.scan import SIDES, SPLIT_RULE, HeldOutDocuments, Scan, Side, in_order, scan_corpus
from apr_train.data.source import sources_of
from apr_train.data.sources import describe_sources
from apr_train.data.tokens import VERSION, DamagedTokenFile, TokenFile, TokenWriter
from apr_train.errors import DataError
from apr_train.family.card import DEFAULT_OBJECTIVE
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings

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
    objective: Objective | None = None,
    options: EncodingWanted | None = None,
    cache_dir: Path | None = None,
    progress: StageProgress | None = None,
    notice: Say | None = None,
) -> Corpus:
    """Open the tokens of a corpus, making them first if they are not in the cache.

    Args:
        settings: which text, and how it is split.
        tokenizer: its fingerprint is part of the cache's key.
        objective: says how documents are encoded; the default one without it.
        options: what else decides the ids.
        cache_dir: instead of `cache_folder()`.
        progress: told of the bytes read, then of the bytes of text encoded.
        notice: told of what was left out or mended; a log warning otherwise.

    Raises:
        DataError: when the text cannot be read, or the cache cannot be written.
        TokenizerError: when the tokenizer has no end-of-text token.
    """
    notice, objective = notice or _log.warning, objective or OBJECTIVES[DEFAULT_OBJECTIVE]
    (source,) = sources_of(settings, objective.source_kinds[0])
    scan = scan_corpus(settings, source.take, notice=notice, progress=progress)
    folder = (cache_dir or cache_folder()) / "tokens"
    encoders = _encoders(settings, tokenizer, objective, options or EncodingWanted())
    keys = {side: _key(settings, scan, tokenizer, side, encoder) for side, encoder in encoders.items()}
    paths = {side: folder / f"{key}.tokens" for side, key in keys.items()}
    sides = {side: _cached(paths[side], keys[side], tokenizer.size, notice) for side in keys}
    if any(tokens is None for tokens in sides.values()):
        _encode(scan, encoders, keys, paths, tokenizer.size, progress)
        sides = {side: _cached(paths[side], keys[side], tokenizer.size, notice) for side in keys}
    train, validation = sides["train"], sides["validation"]
    if train is None or validation is None:
        raise DataError("the token cache cannot be read back", where=folder, hint="Is the disk full, or failing?")
    for finding in encoders["train"].findings(Counter(train.counts) + Counter(validation.counts)):
        notice(f"warning: {finding}")
    return Corpus(train=train, validation=validation, hash=scan.hash, description=describe_sources(settings.data))


def held_out_documents(settings: DataSettings, take: Take = TEXTS) -> list[Document]:
    """The documents of the validation side, in the order of their tokens.

    Raises:
        DataError: when the text cannot be read.
    """
    scan = scan_corpus(settings, take, notice=_log.debug)  # load_corpus says it aloud
    return scan.validation()


@frozen(kw_only=True)
class EncodingWanted:
    """What decides the ids beside the text, the tokenizer and the settings of the data."""

    sequence_length: int = 512
    """Tokens in a row."""
    seed: int = 0
    fim_tokens: Mapping[str, str] = field(factory=dict)


def _encoders(
    settings: DataSettings, tokenizer: TokenizerLike, objective: Objective, wanted: EncodingWanted
) -> dict[Side, Encoder]:
    def make(side: Side) -> Encoder:
        options = EncodeOptions(
            tokenizer=tokenizer,
            settings=settings,
            sequence_length=wanted.sequence_length,
            seed=wanted.seed,
            side=side,
            fim_tokens=wanted.fim_tokens,
        )
        return objective.encoder(objective.source_kinds[0], options)

    return {side: make(side) for side in SIDES}


def _key(settings: DataSettings, scan: Scan, tokenizer: TokenizerLike, side: Side, encoder: Encoder) -> str:
    return cache_key(
        version=VERSION,
        side=side,
        corpus=scan.hash,
        fraction=settings.validation_fraction,
        split=SPLIT_RULE,
        tokenizer=tokenizer.fingerprint,
        size=tokenizer.size,
        encoder=dict(encoder.fingerprint),
    )


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
    encoders: Mapping[Side, Encoder],
    keys: Mapping[Side, str],
    paths: Mapping[Side, Path],
    size: int,
    progress: StageProgress | None,
) -> None:
    """Make both token files, in one more reading; each appears under its name only when it is whole."""
    held: HeldOutDocuments = {}
    done = byte_counter(progress, "tokenise", scan.text_bytes)
    for side in SIDES:
        documents: Iterable[Document] = scan.train(held) if side == "train" else in_order(held)
        with TokenWriter(paths[side], key=keys[side], size=size) as writer:
            encoders[side].encode(documents, writer, done=done)
            writer.finish()

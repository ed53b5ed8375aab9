"""A corpus: read source by source, split by document, and tokenised once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import attrs
from attrs import field, frozen

from apr_train.data.cache import cache_folder, cache_key
from apr_train.data.documents import Document
from apr_train.data.encoding import EncodeOptions, Encoder
from apr_train.data.id_documents import ShardIds
from apr_train.data.objectives import OBJECTIVES, Objective
from apr_train.data.protocols import StageProgress, TokenizerLike, byte_counter
from apr_train.data.scan import Scan, scan_sources
from apr_train.data.source import Source, Sources, described, sources_of, wanted_of
from apr_train.data.split import EVERYTHING, NOTHING, SPLIT_RULE, HeldOutDocuments, Side, in_order
from apr_train.data.stream import StreamSource
from apr_train.data.tokens import VERSION, DamagedTokenFile, TokenFile, TokenWriter
from apr_train.data.unchanged import Unchanged
from apr_train.errors import DataError
from apr_train.family.card import DEFAULT_OBJECTIVE
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Part:
    """The tokens of one source on one side."""

    source: Source
    tokens: TokenFile
    scan: Scan = field(repr=False)
    """What its reading told."""

    @property
    def name(self) -> str | None:
        """The source's; None for the only one, which nobody named."""
        return self.source.name

    @property
    def rows(self) -> StreamSource:
        """What batches are made from."""
        source = self.source
        return StreamSource(name=source.name, tokens=self.tokens, weight=source.weight, max_epochs=source.max_epochs)


@frozen(kw_only=True)
class Corpus:
    """Both sides of a tokenised corpus."""

    learnt: tuple[Part, ...]
    """What is learnt from: a part without a name, or several with one each."""
    held_out: tuple[Part, ...]
    """What is measured: of the same sources, or a held-out set of one's own."""
    hash: str
    """Hex digest of the texts in their order; independent of where they lie and of the tokenizer."""
    description: str
    """Where the text comes from, for the model card."""

    @property
    def train(self) -> TokenFile:
        """What is learnt from, of a corpus of one source."""
        (part,) = self.learnt
        return part.tokens

    @property
    def validation(self) -> TokenFile:
        """What is held out, of a corpus of one source."""
        (part,) = self.held_out
        return part.tokens

    @property
    def learnt_tokens(self) -> int:
        """Tokens to learn from, of all sources."""
        return sum(len(part.tokens) for part in self.learnt)

    @property
    def held_out_tokens(self) -> int:
        """Tokens that are held out, of all sources."""
        return sum(len(part.tokens) for part in self.held_out)

    @property
    def max_token_id(self) -> int:
        """The largest id on either side; must be below the model's vocabulary."""
        return max(part.tokens.max_token_id for part in (*self.learnt, *self.held_out))

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token of the validation side; nats per token / ln 2 / this = bits per byte."""
        return sum(part.tokens.text_bytes for part in self.held_out) / max(1, self.held_out_tokens)


@frozen(kw_only=True)
class EncodingWanted:
    """What decides the ids beside the text, the tokenizer and the settings of the data."""

    sequence_length: int = 512
    """Tokens in a row."""
    seed: int = 0
    fim_tokens: Mapping[str, str] = field(factory=dict)


def load_corpus(
    settings: DataSettings,
    tokenizer: TokenizerLike,
    *,
    objective: Objective | None = None,
    options: EncodingWanted | None = None,
    cache_dir: Path | None = None,
    learn: bool = True,
    believe: bool = True,
    unchanged: Unchanged | None = None,
    hashed: Callable[[str], None] = lambda _: None,
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
        learn: whether what is learnt from is wanted, too; otherwise `--data` is not read where there is a `--val-data`.
        believe: whether files that look unchanged need not be read again (`data.unchanged`); `settings.rehash` overrules it.
        unchanged: the readings that are believed, where others have asked them already, instead of `believe`.
        hashed: told of the corpus's hash before any of it is encoded.
        progress: told of the bytes read, then of the bytes of text encoded.
        notice: told of what was left out or mended; a log warning otherwise.

    Raises:
        ConfigError: for sources that are no mixture.
        DataError: when the text cannot be read, or the cache cannot be written.
        TokenizerError: when the tokenizer has no end-of-text token.
    """
    notice, objective = notice or _log.warning, objective or OBJECTIVES[DEFAULT_OBJECTIVE]
    sources, loading = sources_of(settings, objective), _Loading(settings, notice, progress, cache_dir, believe, unchanged)
    if not learn and sources.held_out:
        sources = attrs.evolve(sources, learnt=())
    scans = loading.scans(sources.learnt, sources.held_out, _ids(tokenizer, objective, sources))
    hashed(hash_of(scans))
    cache = TokenCache(loading.folder, settings, tokenizer, objective, options or EncodingWanted(), notice)
    pairs = list(zip((*sources.learnt, *sources.held_out), scans, strict=True))
    made = cache.open(pairs, progress)
    return Corpus(
        learnt=tuple(made[place, "train"] for place in range(len(sources.learnt))),
        held_out=tuple(part for (_, side), part in made.items() if side == "validation"),
        hash=hash_of(scans),
        description=described(sources),
    )


def scanned(
    settings: DataSettings, objective: Objective | None = None, *, cache_dir: Path | None = None, believe: bool = True
) -> list[Scan]:
    """What is known of the sources of text that are learnt from; nothing is said, for `load_corpus` says it aloud.

    Raises:
        ConfigError: for sources that are no mixture.
        DataError: when a text cannot be read.
    """
    sources = sources_of(settings, objective or OBJECTIVES[DEFAULT_OBJECTIVE])
    learnt, held_out = ([item for item in group if item.kind != "tokens"] for group in (sources.learnt, sources.held_out))
    return _Loading(settings, _log.debug, None, cache_dir, believe).scans(learnt, held_out)[: len(learnt)]


def held_out_documents(settings: DataSettings, objective: Objective | None = None) -> list[Document]:
    """The texts of the validation side, source by source in the order of their tokens.

    Raises:
        ConfigError: for sources that are no mixture.
        DataError: when a text cannot be read.
    """
    sources = sources_of(settings, objective or OBJECTIVES[DEFAULT_OBJECTIVE])
    loading = _Loading(settings, _log.debug)  # load_corpus says it aloud
    own, learnt = ([item for item in group if item.kind == "text"] for group in (sources.held_out, sources.learnt))
    scans = loading.scans(() if sources.held_out else learnt, own)
    return [document for scan in scans for document in scan.validation()]


def _ids(tokenizer: TokenizerLike, objective: Objective, sources: Sources) -> ShardIds | None:
    """What the ids of sources of ids mean; None where there is none."""
    if all(item.kind != "tokens" for item in (*sources.learnt, *sources.held_out)):
        return None
    return ShardIds(size=tokenizer.size, end=objective.document_ends(tokenizer).end)


class _Loading:
    """One reading of a corpus: which files need not be read again, and who is told."""

    def __init__(
        self,
        settings: DataSettings,
        notice: Say,
        progress: StageProgress | None = None,
        cache_dir: Path | None = None,
        believe: bool = True,
        unchanged: Unchanged | None = None,
    ) -> None:
        self._settings, self._notice, self._progress = settings, notice, progress
        self._unchanged = unchanged or Unchanged(cache_dir, believe=believe and not settings.rehash)
        self.folder = (cache_dir or cache_folder()) / "tokens"

    def scans(self, learnt: Sequence[Source], held_out: Sequence[Source], ids: ShardIds | None = None) -> list[Scan]:
        """A scan of each source; `ids` says what those of ids mean."""
        return scan_sources(
            wanted_of(learnt, ids),
            self._settings,
            wanted_of(held_out, ids),
            unchanged=self._unchanged,
            notice=self._notice,
            progress=self._progress,
        )


def hash_of(scans: Sequence[Scan]) -> str:
    """Of one pool the hash of its texts; of several sources one that knows their names, and which are only measured."""
    if len(scans) == 1 and scans[0].name is None:
        return scans[0].hash
    return cache_key(sources=[(scan.name, scan.hash, scan.split == EVERYTHING) for scan in scans])


@frozen
class TokenCache:
    """The token files of sources, each under a key of all that decides its ids."""

    folder: Path
    settings: DataSettings
    tokenizer: TokenizerLike = field(repr=False)
    objective: Objective
    wanted: EncodingWanted
    notice: Say = field(repr=False)

    def open(self, pairs: Sequence[tuple[Source, Scan]], progress: StageProgress | None = None) -> dict[tuple[int, Side], Part]:
        """The token files of sources, made where they are missing, by the source's place and the side.

        Raises:
            DataError: when the text cannot be read, or the cache cannot be written.
        """
        entries = {
            (place, side): self._entry(source, scan, side) for place, (source, scan) in enumerate(pairs) for side in scan.sides
        }
        found = {at: entry.open(self.tokenizer.size, self.notice) for at, entry in entries.items()}
        missing = [
            place for place in range(len(pairs)) if any(at[0] == place and tokens is None for at, tokens in found.items())
        ]
        done = byte_counter(progress, "tokenise", sum(pairs[place][1].text_bytes for place in missing))
        for place in missing:
            mine = {side: entry for (at, side), entry in entries.items() if at == place}
            _encode(pairs[place][1], mine, self.tokenizer.size, done)
            found |= {(place, side): entry.open(self.tokenizer.size, self.notice) for side, entry in mine.items()}
        parts = {at: self._part(*pairs[at[0]], tokens) for at, tokens in found.items()}
        for place, (source, scan) in enumerate(pairs):
            self._tell(source, entries[place, scan.sides[0]].encoder, [parts[place, side].tokens for side in scan.sides])
        return parts

    def _entry(self, source: Source, scan: Scan, side: Side) -> _Entry:
        options = EncodeOptions(
            tokenizer=self.tokenizer,
            settings=self.settings,
            sequence_length=self.wanted.sequence_length,
            seed=self.wanted.seed,
            side=side,
            fim_tokens=self.wanted.fim_tokens,
        )
        encoder = self.objective.encoder(source.kind, options)
        key = _key(self.settings, scan, self.tokenizer, side, encoder)
        return _Entry(self.folder / f"{key}.tokens", key, encoder)

    def _part(self, source: Source, scan: Scan, tokens: TokenFile | None) -> Part:
        if tokens is None:
            raise DataError("the token cache cannot be read back", where=self.folder, hint="Is the disk full, or failing?")
        return Part(source=source, tokens=tokens, scan=scan)

    def _tell(self, source: Source, encoder: Encoder, sides: Sequence[TokenFile]) -> None:
        """What happened to documents on the way, of both sides together."""
        counts = sum((Counter(tokens.counts) for tokens in sides), Counter())
        for finding in encoder.findings(counts):
            self.notice(f"warning: {attrs.evolve(finding, field=finding.field or source.name or '')}")


@frozen
class _Entry:
    """One token file of the cache: where it is, the key of what it holds, and how it is made."""

    path: Path
    key: str
    encoder: Encoder

    def open(self, size: int, notice: Say) -> TokenFile | None:
        """The tokens; None where they are missing or damaged."""
        try:
            return TokenFile.open(self.path, key=self.key, size=size)
        except FileNotFoundError:
            return None
        except (DamagedTokenFile, OSError) as error:
            notice(f"{self.path}: the cached tokens are damaged ({error}); they are made again")
            return None


def _key(settings: DataSettings, scan: Scan, tokenizer: TokenizerLike, side: Side, encoder: Encoder) -> str:
    share = {NOTHING: 0, EVERYTHING: 1}.get(scan.split, settings.validation_fraction)
    elsewhere = {"elsewhere": cache_key(keys=sorted(scan.elsewhere))} if scan.elsewhere and side == "train" else {}
    return cache_key(
        version=VERSION,
        side=side,
        corpus=scan.hash,
        fraction=share,
        split=SPLIT_RULE,
        tokenizer=tokenizer.fingerprint,
        size=tokenizer.size,
        encoder=dict(encoder.fingerprint),
        **elsewhere,
    )


def _encode(scan: Scan, entries: Mapping[Side, _Entry], size: int, done: Callable[[int], None]) -> None:
    """Make the token files of a source, in one more reading; each appears under its name only when it is whole."""
    held: HeldOutDocuments = {}
    for side, entry in entries.items():
        with TokenWriter(entry.path, key=entry.key, size=size) as writer:
            entry.encoder.encode(_of_side(scan, side, held), writer, done=done)
            writer.finish()


def _of_side(scan: Scan, side: Side, held: HeldOutDocuments) -> Iterable[Document]:
    """The documents of one side; `held` is filled by those of the other, and read again only where that was not made."""
    if side == "train":
        return scan.train(held)
    return in_order(held) if held else scan.validation()

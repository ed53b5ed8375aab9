"""What is known of sources before anything is encoded: the documents of each, read once, and on which side each of them is.

Of several sources each is split by itself. What is held out of one is learnt from none: a text that is in two of them has one
key, and a source leaves out what another one holds out. With a held-out set of one's own nothing else is held out, and no
text that is in that set is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from attrs import field, frozen

from apr_train import rules
from apr_train.data.documents import TEXTS, Document, Take
from apr_train.data.formats.packed import unreadable
from apr_train.data.id_documents import ShardIds
from apr_train.data.protocols import StageProgress, byte_counter
from apr_train.data.reading import Contents, TextDigest, Wanted, documents_of, known_or_found, read_source
from apr_train.data.sources import Found
from apr_train.data.split import (
    EVERYTHING,
    NOTHING,
    SIDES,
    HeldOutDocuments,
    Numbers,
    Side,
    Split,
    Texts,
    held_out_of,
    train_documents,
)
from apr_train.data.unchanged import Unchanged
from apr_train.errors import DataError, Finding
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings


@frozen(kw_only=True)
class Scan:
    """What is known of a source before anything is encoded: its documents, and on which side each of them is."""

    files: Sequence[Path] = field(repr=False)
    """The files that are read."""
    hash: str
    """Hex digest of the texts in their order."""
    text_bytes: int
    """UTF-8 bytes of all texts."""
    split: Split
    """The rule that sends each document to its side."""
    take: Take = TEXTS
    """What is taken of each record."""
    left_out: int = 0
    """Documents whose text, or whose end, is on neither side: copies of what is held out."""
    shards: ShardIds | None = None
    """For files of token ids: what they mean."""
    name: str | None = None
    """The source's."""
    elsewhere: frozenset[int] = frozenset()
    """Keys of texts that another source, or a held-out set of one's own, holds out: here they are on neither side."""
    left_elsewhere: int = 0
    """Documents with such a key."""
    documents: int = 0
    """How many there are on both sides and on neither."""
    recalled: Path | None = field(default=None, eq=False, repr=False)
    """The entry of the cache that the hash is from; None: the files were read."""

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides on which it has documents."""
        return ("validation",) if self.split == EVERYTHING else ("train",) if self.split == NOTHING else SIDES

    def notices(self) -> Iterator[str]:
        """What the split takes out of the text."""
        of = "" if self.name is None else f"source {self.name}: "
        if self.left_out:
            what = "documents" if self.split.tail is None else "documents, of which only the beginning is learnt"
            yield f"{of}copies of held-out text, which is held out once and not learnt: {self.left_out:,} {what}"
        if self.left_elsewhere:
            where = "--val-data" if self.split == NOTHING else "another source"
            yield f"{of}not learnt, for their text is held out in {where}: {self.left_elsewhere:,} documents"

    def train(self, held: HeldOutDocuments | None = None) -> Iterator[Document]:
        """The documents to learn from, in their order; when they are through, `held` has those to validate on."""
        return train_documents(self._documents(), self.split, held, self.elsewhere)

    def validation(self) -> list[Document]:
        """The documents to validate on, in the order of their keys."""
        return held_out_of(self._documents(), self.split)

    def _documents(self) -> Iterator[Document]:
        """The documents once more.

        Raises:
            DataError: at the end, when they are not what they were.
        """
        digest = TextDigest()
        for document in documents_of(self.files, self.take, self.shards):
            digest.add(document)
            yield document
        if digest.hex() != self.hash:
            if self.recalled is not None:
                self.recalled.unlink(missing_ok=True)  # what it says of the files is not true
            raise DataError("the corpus changed while it was read", where="--data", hint="Run it again.")


def divided(contents: Sequence[Contents], fraction: float, own: Sequence[Contents] = ()) -> tuple[list[Scan], list[Finding]]:
    """The two sides of sources, and the warnings about shares that whole documents do not make up.

    Args:
        contents: of each source that is learnt.
        fraction: the share of each that is held out, if there is no `own`.
        own: a held-out set of one's own, of which everything is held out.

    Returns:
        A scan for each of `contents`, then one for each of `own`.

    Raises:
        DataError: when nothing of a source is left to learn.
    """
    splits = [NOTHING if own else item.texts.split(fraction) for item in contents]
    held = [item.texts.held_keys(split) for item, split in zip(contents, splits, strict=True)]
    of_own = [item.texts.keys for item in own]
    scans = []
    for place, (item, split) in enumerate(zip(contents, splits, strict=True)):
        _require_whole(item, split)
        elsewhere = _shared(item.texts, split, [*held[:place], *held[place + 1 :], *of_own])
        _require_a_text(item, split, elsewhere)
        scans.append(_scan(item, split, elsewhere))
    scans += [_scan(item, EVERYTHING) for item in own]
    named = zip(contents, splits, strict=True)
    findings = (
        [] if own else [found for item, split in named for found in item.texts.findings(fraction, split, item.name or "")]
    )
    return scans, findings


def _shared(texts: Texts, split: Split, others: Sequence[Numbers]) -> frozenset[int]:
    """Keys of texts that others hold out, and that are not held out whole here."""
    if not any(map(len, others)):
        return frozenset()
    taken = np.concatenate(others)
    return frozenset(map(int, np.setdiff1d(np.intersect1d(texts.keys, taken), texts.held_keys(split, whole=True))))


def _require_whole(item: Contents, split: Split) -> None:
    """Of a conversation no end is held out."""
    if split.tail is None or item.take.whole_texts:
        return
    raise DataError(
        "too few conversations to hold some of them out",
        where="--data",
        field=item.name,
        rule=rules.PREFLIGHT_024,
        expected="whole conversations that make up the share",
        found=f"{len(item.texts.keys):,} different ones",
        hint="Give more of them, or others to validate on with --val-data.",
    )


def _require_a_text(item: Contents, split: Split, elsewhere: frozenset[int]) -> None:
    if len(item.texts.held_keys(split, whole=True)) + len(elsewhere) < len(item.texts.keys):
        return
    raise DataError(
        "nothing is left to learn",
        where="--data",
        field=item.name,
        rule=rules.PREFLIGHT_025,
        expected="a text that is held out nowhere",
        found=f"{len(elsewhere):,} texts that are held out in {'--val-data' if split == NOTHING else 'another source'}",
    )


def _scan(item: Contents, split: Split, elsewhere: frozenset[int] = frozenset()) -> Scan:
    return Scan(
        files=item.files,
        hash=item.hash,
        text_bytes=item.text_bytes,
        split=split,
        take=item.take,
        shards=item.shards,
        left_out=item.texts.left_out(split),
        name=item.name,
        elsewhere=elsewhere,
        left_elsewhere=item.texts.documents_of(elsewhere),
        documents=item.documents,
        recalled=item.recalled,
    )


def scan_corpus(settings: DataSettings, take: Take = TEXTS, *, notice: Say, progress: StageProgress | None = None) -> Scan:
    """Read all documents of `settings.data`, as one pool, and split them by `settings.validation_fraction`.

    Raises:
        DataError: when they cannot be read, or when there are none.
    """
    wanted = [Wanted(name=None, paths=settings.data, take=take)]
    (scan,) = scan_sources(wanted, settings, notice=notice, progress=progress)
    return scan


def scan_sources(
    learnt: Sequence[Wanted],
    settings: DataSettings,
    own: Sequence[Wanted] = (),
    *,
    unchanged: Unchanged | None = None,
    notice: Say,
    progress: StageProgress | None = None,
) -> list[Scan]:
    """Read all documents of sources, and divide them.

    A text that is not UTF-8 is left out, with a notice, unless the user named that very file. JSONL is data, of which
    nothing is left out.

    Args:
        learnt: the sources of `--data`.
        settings: how they are read and split.
        own: the sources of `--val-data`.
        unchanged: readings of files that need not be read again; without it all are read.
        notice: told of what was left out.
        progress: told of the bytes read.

    Raises:
        DataError: when they cannot be read, or when there are none.
    """
    wanted = [*learnt, *own]
    known = [known_or_found(item, settings, unchanged, notice=notice) for item in wanted]
    total = sum(_total_size(item.files) for item in known if isinstance(item, Found))
    done = byte_counter(progress, "read", total if progress is not None else 0)
    contents = [
        item if isinstance(item, Contents) else read_source(asked, item, settings, unchanged, notice=notice, done=done)
        for asked, item in zip(wanted, known, strict=True)
    ]
    for text in (text for item in known if isinstance(item, Contents) for text in item.notes):
        notice(text)
    scans, findings = divided(contents[: len(learnt)], settings.validation_fraction, contents[len(learnt) :])
    for text in (text for scan in scans for text in scan.notices()):
        notice(text)
    for finding in findings:
        notice(f"warning: {finding}")
    if any(scan.split.tail is not None for scan in scans) and not findings:
        notice("the corpus is a single text: its tail is held out for validation")
    return scans


def _total_size(files: Sequence[Path]) -> int:
    try:
        return sum(path.stat().st_size for path in files)
    except OSError as error:
        raise unreadable(error) from error

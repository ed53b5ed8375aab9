"""A look at the text of a run before it starts: all of a small corpus, of a large one as much as takes no time.

Of what was read before and has not changed since (`data.unchanged`) everything is known at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import Factory, define, field, frozen

from apr_train import rules
from apr_train.data.documents import is_packed, read_documents, require_text_at_start
from apr_train.data.formats.packed import READ_AHEAD, unreadable
from apr_train.data.id_documents import ShardIds
from apr_train.data.objectives import OBJECTIVES, Objective
from apr_train.data.reading import Contents, Reading, Wanted, is_known, known_or_found
from apr_train.data.scan import Scan, divided
from apr_train.data.shards import open_shard
from apr_train.data.source import read_sources, wanted_of
from apr_train.data.sources import Search, searches
from apr_train.data.unchanged import Unchanged
from apr_train.errors import DataError, Finding
from apr_train.family.card import DEFAULT_OBJECTIVE
from apr_train.run.settings import DataSettings

LOOKED_AT = 1 << 24
"""Bytes of files, over all arguments of `--data`: what one does not need the others have."""
MOST_FILES = 2000
_UNKNOWN = ShardIds(size=1 << 16, end=0)
"""What ids mean is known with the tokenizer; until then only that a file is a shard."""
_UNPACKED = 8
"""How many bytes of text are taken to be in a byte of a packed file, or of columns."""


@frozen(kw_only=True)
class Look:
    """What is known of the text of `--data` after a look."""

    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    """What is left out, and what is taken for what, as far as was looked."""
    files: int = 0
    """Files of text that were looked at."""
    text_bytes: int = 0
    """UTF-8 bytes of the text in them, as far as it was looked at."""
    beginnings: int = 0
    """Of the files, those of which only the beginning was looked at."""
    complete: bool = True
    """Whether that is all of it."""
    learnt: tuple[Scan, ...] = field(default=(), repr=False)
    """Each source of `--data`, wholly known; none when there is more of any, or a fault."""

    @property
    def facts(self) -> dict[str, Any]:
        """What was looked at, for the preflight's report; empty when nothing was."""
        seen = {
            "files": self.files,
            "beginnings": self.beginnings,
            "text_bytes": self.text_bytes,
            "complete": self.complete,
        }
        return {"data": seen} if self.files else {}


def look_at(settings: DataSettings, objective: Objective | None = None, *, unchanged: Unchanged | None = None) -> Look:
    """Find and read the text of all sources, until all of it or `LOOKED_AT` bytes are read; every fault is a finding.

    The standard library, which is the text when there is no `--data`, is not read.

    Args:
        settings: which text.
        objective: says which kinds of sources there are; the default one without it.
        unchanged: readings of files that need not be read again.
    """
    sources, faults = read_sources(settings, objective or OBJECTIVES[DEFAULT_OBJECTIVE])
    every = wanted_of((*sources.learnt, *sources.held_out), _UNKNOWN)
    looks = [_Look(wanted, settings, unchanged) for wanted in every if wanted.paths]
    _read_all(looks)
    found = [*faults, *(error.under(rules.PREFLIGHT_025, "--data") for look in looks for error in look.faults)]
    complete = all(look.complete for look in looks)
    whole = complete and not found and all(source.paths for source in sources.learnt)
    scans, of_all = _divided(looks, len(sources.learnt), settings) if whole else ([], [])
    return Look(
        findings=(*found, *of_all),
        notes=(*(note for look in looks for note in look.notes()), *(text for scan in scans for text in scan.notices())),
        files=sum(look.files for look in looks),
        beginnings=sum(look.reading.beginnings for look in looks),
        text_bytes=sum(look.text_bytes for look in looks),
        complete=complete,
        learnt=tuple(scans[: len(sources.learnt)]),
    )


def _divided(looks: Sequence[_Look], learnt: int, settings: DataSettings) -> tuple[list[Scan], list[Finding]]:
    """The sides of sources that are known wholly."""
    try:
        contents = [look.contents() for look in looks]
        return divided(contents[:learnt], settings.validation_fraction, contents[learnt:])
    except DataError as error:
        return [], [error.under(rules.PREFLIGHT_025, "--data")]


def _read_all(looks: Sequence[_Look]) -> None:
    """Read what is not known, as much of each argument as its part of the budget allows."""
    arguments = [(look, found) for look in looks for found in look.found]
    for (look, found), budget in zip(arguments, _budgets([found.size for _, found in arguments]), strict=True):
        found.read(look.reading, budget)


class _Look:
    """What is known of one source, or found out now."""

    def __init__(self, wanted: Wanted, settings: DataSettings, unchanged: Unchanged | None) -> None:
        self.reading = _Looking(wanted)
        self._left_out: list[str] = []
        self._ids = wanted.shards is not None
        self._known = None if unchanged is None or self._ids else self._recalled(wanted, settings, unchanged)
        self.found: list[_Found] = []
        if self._known is None:
            seen: set[Path] = set()
            sought = searches(wanted.paths, gitignore=settings.gitignore, shards=self._ids)
            self.found = [_Found.by(search, seen) for search in sought]
            self._left_out = [search.left_out_text for search in sought if search.left_out_text]

    def _recalled(self, wanted: Wanted, settings: DataSettings, unchanged: Unchanged) -> Contents | None:
        """What an earlier reading told, if there was one: only then are all files looked for, or known to be the same."""
        if not is_known(wanted, unchanged):
            return None
        try:
            known = known_or_found(wanted, settings, unchanged, notice=self._left_out.append, note=False)
        except DataError:
            return None  # the look says it
        return known if isinstance(known, Contents) else None

    @property
    def complete(self) -> bool:
        """Whether all of it is known, which of token ids it never is."""
        return not self._ids and all(found.complete for found in self.found)

    @property
    def faults(self) -> list[DataError]:
        """What is wrong with its files."""
        return [error for found in self.found for error in found.faults]

    @property
    def files(self) -> int:
        """Files of text that were looked at, or were before."""
        known = 0 if self._known is None else len(self._known.files)
        return known + len(self.reading.kept) + self.reading.beginnings

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of text in them."""
        known = 0 if self._known is None else self._known.text_bytes
        return known + self.reading.digest.text_bytes + self.reading.begun_bytes

    def notes(self) -> list[str]:
        """What is left out, and taken for what."""
        return [*self._left_out, *(self.reading.notices() if self._known is None else self._known.notes)]

    def contents(self) -> Contents:
        """All of it.

        Raises:
            DataError: when there is no document.
        """
        return self.reading.contents() if self._known is None else self._known


def _budgets(sizes: Sequence[int]) -> list[int]:
    """What of `LOOKED_AT` each argument gets: equal parts, and what one does not need the others have."""
    budgets, left = [0] * len(sizes), LOOKED_AT
    for done, place in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        budgets[place] = min(sizes[place], left // (len(sizes) - done))
        left -= budgets[place]
    return budgets


class _Looking(Reading):
    """A reading that also takes the beginnings of files, of which nothing is hashed."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        self.beginnings = self.begun_bytes = 0

    def read(self, path: Path, done: Callable[[int], None] = lambda _: None) -> None:
        """Read a file; of token ids, whose tokenizer is not known yet, see that it is a whole shard.

        Raises:
            DataError: as `Reading.read`.
        """
        if self._wanted.shards is None:
            super().read(path, done)
            return
        open_shard(path, size=self._wanted.shards.size)
        self.kept.append(path)

    @property
    def is_cheap(self) -> bool:
        """Whether a file is known by its header."""
        return self._wanted.shards is not None

    def read_start(self, path: Path, budget: int) -> None:
        """Read the beginning of a file that is too large to be read now.

        Raises:
            DataError: as `read`, for what is wrong there.
        """
        form = self.form(path)
        if form == "text" and not self._take.whole_texts:
            self.read(path)  # which leaves it out, or refuses it
            return
        self.beginnings += 1
        if form == "text":
            self.begun_bytes += require_text_at_start(path, budget)
            return
        read, before = 0, self.begun_bytes

        def done(more: int) -> None:
            nonlocal read
            read += more

        for document in read_documents([path], self._take, done=done):
            self.begun_bytes += len(document.utf8)
            if self.begun_bytes - before > budget or read > budget + READ_AHEAD:
                return


@define
class _Found:
    """The files behind one argument, as many as may be looked at, and what is wrong with them."""

    files: list[tuple[Path, int]] = Factory(list)
    complete: bool = True
    """Whether these are all of them, and then whether all were read."""
    faults: list[DataError] = Factory(list)
    size: int = 0
    """Bytes of the files."""

    @classmethod
    def by(cls, search: Search, known: set[Path]) -> _Found:
        """Search until the files exceed `LOOKED_AT` bytes; those that are known already are not taken again."""
        found = cls()
        try:
            for path in search.files():
                if found.size > LOOKED_AT or len(found.files) == MOST_FILES:
                    found.complete = False
                    break
                if (resolved := path.resolve()) not in known:
                    known.add(resolved)
                    found.files.append((path, _size(path)))
                    found.size += found.files[-1][1]
        except DataError as error:
            found.faults.append(error)
        return found

    def read(self, reading: _Looking, budget: int) -> None:
        """Read the files until the budget is spent, or one is at fault."""
        try:
            for path, size in self.files:
                if size > budget and not reading.is_cheap:
                    self.complete = False
                    if budget:
                        reading.read_start(path, budget)
                    return
                reading.read(path)
                budget -= size * (not reading.is_cheap)
        except DataError as error:
            self.faults.insert(0, error)


def _size(path: Path) -> int:
    """Bytes of text in a file, by a guess where it is packed."""
    try:
        return path.stat().st_size * (_UNPACKED if is_packed(path) else 1)
    except OSError as error:
        raise unreadable(error) from error

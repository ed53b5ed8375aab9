"""A look at the text of a run before it starts: all of a small corpus, of a large one as much as takes no time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import Factory, define, field, frozen

from apr_train import rules
from apr_train.data.documents import TEXTS, Take, is_packed, read_documents, require_text_at_start
from apr_train.data.formats.packed import READ_AHEAD
from apr_train.data.scan import Reading, Scan
from apr_train.data.sources import Search, searches, unreadable
from apr_train.errors import DataError, Finding
from apr_train.run.settings import DataSettings

LOOKED_AT = 1 << 24
"""Bytes of files, over all arguments of `--data`: what one does not need the others have."""
MOST_FILES = 2000
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
    scan: Scan | None = field(default=None, repr=False)
    """The whole corpus; None when there is more of it, or a fault."""

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


def look_at(settings: DataSettings, take: Take = TEXTS) -> Look:
    """Find and read the text of `--data`, until all of it or `LOOKED_AT` bytes are read; every fault is a finding.

    The standard library, which is the text when there is no `--data`, is not read.
    """
    reading = _Looking(settings, take)
    known: set[Path] = set()
    sought = searches(settings.data, gitignore=settings.gitignore) if settings.data else []
    found = [_Found.by(search, known) for search in sought]
    for argument, budget in zip(found, _budgets([argument.size for argument in found]), strict=True):
        argument.read(reading, budget)
    findings = [error.under(rules.PREFLIGHT_025, "--data") for argument in found for error in argument.faults]
    complete = all(argument.complete for argument in found)
    scan, of_all = _whole(reading) if sought and complete and not findings else (None, [])
    left_out = [search.left_out_text for search in sought if search.left_out_text]
    return Look(
        findings=(*findings, *of_all),
        notes=(*left_out, *reading.notices(), *(scan.notices() if scan is not None else ())),
        files=len(reading.kept) + reading.beginnings,
        beginnings=reading.beginnings,
        text_bytes=reading.digest.text_bytes + reading.begun_bytes,
        complete=complete,
        scan=scan,
    )


def _whole(reading: Reading) -> tuple[Scan | None, list[Finding]]:
    try:
        return reading.scan()
    except DataError as error:
        return None, [error.under(rules.PREFLIGHT_025, "--data")]


def _budgets(sizes: Sequence[int]) -> list[int]:
    """What of `LOOKED_AT` each argument gets: equal parts, and what one does not need the others have."""
    budgets, left = [0] * len(sizes), LOOKED_AT
    for done, place in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        budgets[place] = min(sizes[place], left // (len(sizes) - done))
        left -= budgets[place]
    return budgets


class _Looking(Reading):
    """A reading that also takes the beginnings of files, of which nothing is hashed."""

    def __init__(self, settings: DataSettings, take: Take) -> None:
        super().__init__(settings, take)
        self.beginnings = self.begun_bytes = 0

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
                if size > budget:
                    self.complete = False
                    if budget:
                        reading.read_start(path, budget)
                    return
                reading.read(path)
                budget -= size
        except DataError as error:
            self.faults.insert(0, error)


def _size(path: Path) -> int:
    """Bytes of text in a file, by a guess where it is packed."""
    try:
        return path.stat().st_size * (_UNPACKED if is_packed(path) else 1)
    except OSError as error:
        raise unreadable(error) from error

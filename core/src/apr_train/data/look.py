"""A look at the text of a run before it starts: all of a small corpus, of a large one as much as takes no time."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from attrs import field, frozen

from apr_train import rules
from apr_train.data.documents import read_documents, require_text_at_start
from apr_train.data.scan import Reading, Scan
from apr_train.data.sources import Search, searches, unreadable
from apr_train.errors import DataError, Finding
from apr_train.run.settings import DataSettings

LOOKED_AT = 1 << 24
"""Bytes of files, over all arguments of `--data`."""
MOST_FILES = 2000


@frozen(kw_only=True)
class Look:
    """What is known of the text of `--data` after a look."""

    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    """What is left out, and what is taken for what, as far as was looked."""
    files: int = 0
    """Files of text that were looked at."""
    text_bytes: int = 0
    """UTF-8 bytes of the text in them."""
    complete: bool = True
    """Whether that is all of it."""
    scan: Scan | None = field(default=None, repr=False)
    """The whole corpus; None when there is more of it, or a fault."""

    @property
    def facts(self) -> dict[str, Any]:
        """What was looked at, for the preflight's report; empty when nothing was."""
        seen = {"files": self.files, "text_bytes": self.text_bytes, "complete": self.complete}
        return {"data": seen} if self.files else {}


def look_at(settings: DataSettings) -> Look:
    """Find and read the text of `--data`, until all of it or `LOOKED_AT` bytes are read; every fault is a finding.

    The standard library, which is the text when there is no `--data`, is not read.
    """
    reading = Reading(settings)
    findings: list[Finding] = []
    notes: list[str] = []
    complete = True
    sought = searches(settings.data, gitignore=settings.gitignore) if settings.data else []
    for search in sought:
        try:
            complete &= _look_for(search, reading, LOOKED_AT // len(sought))
        except DataError as error:
            findings.append(error.under(rules.PREFLIGHT_025, "--data"))
        notes += [search.left_out_text] if search.left_out_text else []
    scan, of_all = _whole(reading) if sought and complete and not findings else (None, [])
    return Look(
        findings=(*findings, *of_all),
        notes=(*notes, *reading.notices()),
        files=len(reading.kept),
        text_bytes=reading.digest.text_bytes,
        complete=complete,
        scan=scan,
    )


def _whole(reading: Reading) -> tuple[Scan | None, list[Finding]]:
    try:
        return reading.scan()
    except DataError as error:
        return None, [error.under(rules.PREFLIGHT_025, "--data")]


def _look_for(search: Search, reading: Reading, budget: int) -> bool:
    """Read the files of an argument until the budget is spent; whether that was all."""
    for number, path in zip(count(), search.files(), strict=False):
        if budget <= 0 or number == MOST_FILES:
            return False
        size = _size(path)
        if size > budget:
            _look_at_start(path, reading, budget)
            return False
        reading.read(path)
        budget -= size
    return True


def _look_at_start(path: Path, reading: Reading, budget: int) -> None:
    """Read the beginning of a file that is too large to be read now."""
    if reading.form(path) == "text":
        require_text_at_start(path, budget)
        return
    read = 0

    def done(more: int) -> None:
        nonlocal read
        read += more

    for _ in read_documents([path], done=done):
        if read > budget:
            return


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(error) from error

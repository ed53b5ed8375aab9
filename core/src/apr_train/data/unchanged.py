"""What was read of files that have not changed since: a run need not read again what a look at their dates says is the same.

An entry of the cache holds what one reading of a source told, and of every file its size, its dates of change (mtime and
ctime, to the nanosecond) and its inode. It is believed when the same files are found in the same order, and each has all of
these as it had. As with git's index, a file that changed within two seconds before the reading began is never believed: its
clock may be too coarse to tell that it changed once more.

Line 1 of an entry is the BLAKE2b of what follows, line 2 a JSON object; then come the documents' keys and sizes, two arrays
of u64.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
from attrs import frozen

from apr_train.checkpoint.files import json_value, open_regular
from apr_train.data.cache import cache_folder, cache_key, cached_file
from apr_train.errors import FormatError

_VERSION = 1
_RACY = 2 * 10**9
"""Nanoseconds; the coarsest clock of a file system that is in use counts two seconds."""
Numbers = np.ndarray[Any, np.dtype[np.uint64]]
FileState = tuple[str, int, int, int, int]
"""Path, size, mtime and ctime in ns, inode."""


@frozen(kw_only=True)
class Readout:
    """What one reading of a source's files told."""

    kept: tuple[str, ...]
    """The files that have documents."""
    hash: str
    """Of the texts in their order."""
    text_bytes: int
    notes: tuple[str, ...]
    """What was left out, and what was taken for what."""
    keys: Numbers
    """`[documents]`: split keys, in order."""
    sizes: Numbers
    """`[documents]`: bytes of text."""


class Unchanged:
    """The readings of files that have not changed since; a folder of the cache."""

    def __init__(self, folder: Path | None = None, *, believe: bool = True) -> None:
        """A folder of readings.

        Args:
            folder: of the cache; `cache_folder()` without it.
            believe: False reads everything anew, and notes it.
        """
        self._folder = (folder or cache_folder()) / "readings"
        self._believe = believe

    def place(self, **source: Any) -> Path:
        """Where the reading of a source is kept, by JSON-able data that says which files are meant and how they are read."""
        return self._folder / f"{cache_key(version=_VERSION, package=version('apr-train'), **source)}.reading"

    def holds(self, place: Path) -> bool:
        """Whether there is a reading that may be believed, whatever became of its files."""
        return self._believe and place.exists()

    def recall(self, place: Path, files: Sequence[Path]) -> Readout | None:
        """What was read of exactly these files, if they have not changed; None also for a damaged entry."""
        if not self._believe:
            return None
        try:
            return _believed(*_opened(place), states_of(files))
        except (OSError, ValueError, LookupError, TypeError, FormatError):  # its hash was forged, or it is another version's
            return None

    @staticmethod
    def keep(place: Path, reading: Readout, states: Sequence[FileState], *, began: int) -> None:
        """Note a reading for later.

        Args:
            place: as `place` gave it.
            reading: what it told.
            states: of the files that were found, as they were before the first was read.
            began: when that was, as `now` gave it.

        Raises:
            DataError: when the cache cannot be written.
        """
        numbers = {state[0]: number for number, state in enumerate(states)}
        told = {
            "began": began,
            "files": states,
            "kept": [numbers[path] for path in reading.kept],
            "hash": reading.hash,
            "text_bytes": reading.text_bytes,
            "notes": reading.notes,
        }
        body = json.dumps(told).encode("ascii") + b"\n"
        body += reading.keys.astype("<u8").tobytes() + reading.sizes.astype("<u8").tobytes()
        with cached_file(place) as file:
            file.write(_digest(body) + b"\n" + body)


def _believed(told: dict[str, Any], arrays: bytes, states: Sequence[FileState]) -> Readout | None:
    """What an entry says, if the files are as they were then."""
    began = told["began"]
    settled = all(max(mtime, ctime) + _RACY <= began for _, _, mtime, ctime, _ in states)
    if not settled or [list(state) for state in states] != told["files"]:
        return None
    keys, sizes = np.frombuffer(arrays, np.dtype("<u8")).reshape(2, -1)
    kept = tuple(told["files"][place][0] for place in told["kept"])
    notes = tuple(told["notes"])
    return Readout(kept=kept, hash=told["hash"], text_bytes=told["text_bytes"], notes=notes, keys=keys, sizes=sizes)


def now() -> int:
    """The time by which files are judged as settled, in ns."""
    return time_ns()


def states_of(files: Sequence[Path]) -> list[FileState]:
    """The states of files.

    Raises:
        OSError: when one is gone.
    """
    found = ((path, path.stat()) for path in files)
    return [(str(path), told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino) for path, told in found]


def _opened(place: Path) -> tuple[dict[str, Any], bytes]:
    """The object and the arrays of an entry.

    Raises:
        FormatError: when there is none, or it is no JSON.
        ValueError: when it is damaged.
    """
    with open_regular(place) as file:
        digest, _, body = file.read().partition(b"\n")
    if _digest(body) != digest:
        raise ValueError("a damaged entry")
    head, _, arrays = body.partition(b"\n")
    return json_value(head.decode("ascii"), place), arrays


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=32).hexdigest().encode("ascii")

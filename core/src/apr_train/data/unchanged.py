"""What was read of files that have not changed since: a run need not read again what a look at their dates says is the same.

An entry of the cache holds what one reading of a source told, and of every file its size, its dates of change (mtime and
ctime, to the nanosecond) and its inode. It is believed when the same files are found in the same order, and each has all of
these as it had. As with git's index, a file that changed within two seconds before the reading began is never believed: its
clock may be too coarse to tell that it changed once more.

Nor are the files searched for again when everything that the search saw is as it was by the same rule: each folder, whose
dates change with the names in it, and each file, taken or left out.

Line 1 of an entry is the BLAKE2b of what follows, line 2 a JSON object with the length of each part behind it, in bytes: the
paths that were seen, with a NUL between them; of each path the four numbers of its state; the places in them of the files
that were found, and of those that have documents; the documents' keys, and their sizes. Numbers are u64.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
from attrs import frozen

from apr_train.checkpoint.files import json_value, open_regular
from apr_train.data.cache import cache_folder, cache_key, cached_file
from apr_train.data.split import Texts
from apr_train.errors import FormatError

_VERSION = 2
_RACY = 2 * 10**9
"""Nanoseconds; the coarsest clock of a file system that is in use counts two seconds."""
_ABSENT = (0, 0, 0, 0)
_U64 = (1 << 64) - 1
Numbers = np.ndarray[Any, np.dtype[np.uint64]]


@frozen(kw_only=True)
class Readout:
    """What one reading of a source's files told."""

    kept: Sequence[str]
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
    left_out: tuple[str, ...] = ()
    """What the search for the files left out."""

    @cached_property
    def texts(self) -> Texts:
        """The distinct texts, sorted once for all who ask."""
        return Texts.of(self.keys, self.sizes)


@frozen(kw_only=True)
class Seen:
    """What a reading depends on, with the states of before the first file was read."""

    files: Sequence[str]
    """The files that were found, in their order."""
    others: Sequence[str] = ()
    """What else the search saw."""
    search: Mapping[str, Any] | None = None
    """JSON-able: what else decides which files are found; None: more than can be told."""
    states: Numbers
    """`[files + others, 4]`: as `states_of` gives them."""
    began: int
    """When the search began, as `now` gave it."""


class Unchanged:
    """The readings of files that have not changed since; a folder of the cache. What was believed once is not asked again."""

    def __init__(self, folder: Path | None = None, *, believe: bool = True) -> None:
        """A folder of readings.

        Args:
            folder: of the cache; `cache_folder()` without it.
            believe: False reads everything anew, and notes it.
        """
        self._folder = (folder or cache_folder()) / "readings"
        self._believe = believe
        self._believed: dict[Path, Readout] = {}

    def place(self, **source: Any) -> Path:
        """Where the reading of a source is kept, by JSON-able data that says which files are meant and how they are read."""
        return self._folder / f"{cache_key(version=_VERSION, package=version('apr-train'), **source)}.reading"

    def holds(self, place: Path) -> bool:
        """Whether there is a reading that may be believed, whatever became of its files."""
        return self._believe and place.exists()

    def recall(self, place: Path, files: Sequence[Path]) -> Readout | None:
        """What was read of exactly these files, if they have not changed; None also for a damaged entry."""
        entry = self._opened(place)
        return None if entry is None else entry.believed(list(map(str, files)))

    def recall_unsought(self, place: Path, search: Mapping[str, Any]) -> Readout | None:
        """What was read, if all that the search for the files saw is as it was; None also where that cannot be told.

        Args:
            place: as `place` gave it.
            search: as `Seen.search`.
        """
        if place not in self._believed:
            entry = self._opened(place)
            found = None if entry is None else entry.believed_unsought(search)
            if found is None:
                return None
            self._believed[place] = found
        return self._believed[place]

    def _opened(self, place: Path) -> _Entry | None:
        if not self._believe:
            return None
        try:
            return _Entry.read(place)
        except (OSError, ValueError, LookupError, TypeError, FormatError):  # its hash was forged, or it is another version's
            return None

    def keep(self, place: Path, reading: Readout, seen: Seen) -> None:
        """Note a reading for later.

        Raises:
            DataError: when the cache cannot be written.
        """
        self._believed.pop(place, None)
        numbers = {path: number for number, path in enumerate(seen.files)}
        parts = [
            b"\0".join(os.fsencode(path) for path in (*seen.files, *seen.others)),
            seen.states.astype("<u8").tobytes(),
            np.arange(len(seen.files), dtype="<u8").tobytes(),
            np.array([numbers[path] for path in reading.kept], "<u8").tobytes(),
            reading.keys.astype("<u8").tobytes(),
            reading.sizes.astype("<u8").tobytes(),
        ]
        told = {
            "began": seen.began,
            "search": seen.search,
            "hash": reading.hash,
            "text_bytes": reading.text_bytes,
            "notes": reading.notes,
            "left_out": reading.left_out,
            "parts": list(map(len, parts)),
        }
        body = b"".join((json.dumps(told).encode("ascii"), b"\n", *parts))
        with cached_file(place) as file:
            file.write(_digest(body) + b"\n" + body)


@frozen(kw_only=True)
class _Entry:
    """An entry of the cache, before anything of it is believed."""

    told: Mapping[str, Any]
    paths: Sequence[str]
    states: Numbers
    files: Sequence[str]
    readout: Readout

    @classmethod
    def read(cls, place: Path) -> _Entry:
        """The entry in a file.

        Raises:
            FormatError: when there is none, or it is no JSON.
            ValueError, LookupError, TypeError: when it is damaged, or forged.
        """
        told, (paths, states, files, kept, keys, sizes) = _opened(place)
        names = os.fsdecode(paths).split("\0")
        readout = Readout(
            kept=_chosen(names, kept),
            hash=told["hash"],
            text_bytes=told["text_bytes"],
            notes=tuple(told["notes"]),
            keys=np.frombuffer(keys, "<u8"),
            sizes=np.frombuffer(sizes, "<u8"),
            left_out=tuple(told["left_out"]),
        )
        rows = np.frombuffer(states, "<u8").reshape(len(names), 4)
        return cls(told=told, paths=names, states=rows, files=_chosen(names, files), readout=readout)

    def believed(self, files: Sequence[str]) -> Readout | None:
        """What it says, if just these files were found, and are as they were."""
        same = files == self.files and self._as_it_was(files, self.states[: len(files)])
        return self.readout if same else None

    def believed_unsought(self, search: Mapping[str, Any]) -> Readout | None:
        """What it says, if the search would find the same, and all of that is as it was."""
        same = self.told["search"] == search and self._as_it_was(self.paths, self.states)
        return self.readout if same else None

    def _as_it_was(self, paths: Sequence[str], states: Numbers) -> bool:
        dates = states[:, 1:3].astype(np.int64)
        return int(dates.max(initial=0)) + _RACY <= self.told["began"] and np.array_equal(states_of(paths), states)


def _chosen(names: Sequence[str], places: bytes) -> Sequence[str]:
    return [names[place] for place in np.frombuffer(places, "<u8").tolist()]


def now() -> int:
    """The time by which files are judged as settled, in ns."""
    return time_ns()


def states_of(paths: Sequence[str]) -> Numbers:
    """The states of files and folders: `[paths, 4]`, size, mtime and ctime in ns, inode; zeros for what is not there."""
    return np.array([_state(path) for path in paths], np.uint64).reshape(-1, 4)


def _state(path: str) -> tuple[int, int, int, int]:
    try:
        told = os.stat(path)  # noqa: PTH116  # a hundred thousand of them
    except OSError:
        return _ABSENT
    return told.st_size, told.st_mtime_ns & _U64, told.st_ctime_ns & _U64, told.st_ino


def _opened(place: Path) -> tuple[dict[str, Any], list[bytes]]:
    """The object and the parts of an entry.

    Raises:
        FormatError: when there is none, or it is no JSON.
        ValueError: when it is damaged.
    """
    with open_regular(place) as file:
        digest, _, body = file.read().partition(b"\n")
    if _digest(body) != digest:
        raise ValueError("a damaged entry")
    head, _, rest = body.partition(b"\n")
    told = json_value(head.decode("ascii"), place)
    ends = list(accumulate(told["parts"]))
    return told, [rest[end - length : end] for end, length in zip(ends, told["parts"], strict=True)]


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=32).hexdigest().encode("ascii")

"""Going through folders: never into hidden, compiled or linked ones, nor into what this program wrote itself.

Links are not followed because two of them that lead to a folder above themselves make paths without end. A run's folder
is left out because its text grows while it trains: the next run on the same `--data`, and every resume, would see another
corpus; the cache holds trained tokenizers, which are text, too.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from apr_train.data.cache import cache_folder

COMPILED = "__pycache__"
_RUN = "identity.json"
_RUN_BESIDE = (".lock", "config.toml")
"""A run has the first file from its start, one of the others ever after, whatever ends it (see apr_train.train)."""


def is_own_output(folder: Path) -> bool:
    """Whether this is the folder of a run, or the cache."""
    if (folder / _RUN).is_file() and any((folder / name).is_file() for name in _RUN_BESIDE):
        return True
    cache = cache_folder()
    return cache.exists() and folder.samefile(cache)


def walk(top: Path, own: set[Path], excluded: frozenset[str] = frozenset()) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it, each with the names of its files; all names sorted, none hidden.

    Args:
        top: is gone into whatever it is, for it was named.
        own: takes the folders that this program wrote.
        excluded: names of folders to leave out.

    Raises:
        OSError: when a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(top, onerror=fail):
        folder = Path(root)
        if folder != top and is_own_output(folder):
            own.add(folder)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in excluded | {COMPILED})
        yield folder, sorted(name for name in names if not name.startswith("."))


def matches(pattern: str, own: set[Path]) -> Iterator[Path]:
    """What a glob matches, in no order and perhaps twice; `**` goes where `walk` goes, and so has an end.

    Raises:
        OSError: when a folder cannot be listed.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute
        return
    place = parts.index("**")
    rest = parts[place + 1 :]
    for top in map(Path, glob.glob(str(Path(*parts[:place])))):  # noqa: PTH207 - the same
        if not top.is_dir():
            continue
        if not rest:
            yield top
            continue
        for folder, _ in walk(top, own):
            found = matches(str(Path(glob.escape(str(folder)), *rest)), own)
            yield from (path for path in found if path.is_file() or not path.is_symlink())

"""Which files a corpus is made of, always in the same order; never hidden, compiled or linked ones, nor what we wrote.

Links are not followed because two of them that lead to a folder above themselves make paths without end. A run's folder
is left out because its text grows while it trains: the next run on the same `--data`, and every resume, would see another
corpus; the cache holds trained tokenizers, which are text, too.
"""

from __future__ import annotations

import glob
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from apr_train.data.cache import cache_folder
from apr_train.errors import DataError
from apr_train.run.events import Say
from apr_train.run.folder import CONFIG, IDENTITY, LOCK

COMPILED = "__pycache__"


def is_own_output(folder: Path) -> bool:
    """Whether this is the folder of a run, or the cache.

    A run has its identity from its start, and its lock or its settings ever after, whatever ends it.
    """
    if (folder / IDENTITY).is_file() and any((folder / name).is_file() for name in (LOCK, CONFIG)):
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


_STDLIB_EXCLUDED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_SNIFFED = 8192
_NAMED = 3


def find_files(data: Iterable[str], *, notice: Say) -> list[Path]:
    """The files behind `--data`, or the standard library's own source when there is no `--data`.

    A folder stands for every text file below it: hidden names, `__pycache__` and linked folders are left out; with a
    notice also files with a NUL byte near their start, and what this program wrote itself. The same holds for what a glob
    matches, while a file or a folder that is named is taken. A file that several arguments reach is taken once.

    Raises:
        DataError: when an argument matches nothing, is something else than a file or a folder, or cannot be read.
    """
    arguments = list(data)
    with _reading():
        found = [path for argument in arguments for path in _expand(argument, notice)] if arguments else _standard_library()
    unique: dict[Path, Path] = {}
    for path in found:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def require_text(argument: str) -> None:
    """Refuse an argument of `--data` behind which there is no text, after a look at the first file that is some.

    Raises:
        DataError: as `find_files`.
    """
    with _reading():
        if not Path(argument).is_file() and all(map(_is_binary, _found(argument, set()))):
            raise _no_text(argument)


def describe_sources(data: Iterable[str]) -> str:
    """Where a corpus comes from, in words for a model card."""
    return ", ".join(data) or f"the standard library of Python {platform.python_version()} (PSF-2.0)"


def counted(paths: Iterable[Path]) -> str:
    """How many paths, and which the first ones are, for a notice: `5 (a, b, c, …)`."""
    names = [str(path) for path in paths]
    shown = names[:_NAMED] + ["…"] * (len(names) > _NAMED)
    return f"{len(names)} ({', '.join(shown)})"


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError("cannot be read", where=error.filename, found=error.strerror) from error


def _expand(argument: str, notice: Say) -> list[Path]:
    path = Path(argument)
    if path.is_file():
        return [path]
    own: set[Path] = set()
    files = list(dict.fromkeys(_found(argument, own)))
    text = [file for file in files if not _is_binary(file)]
    if own:
        notice(f"{argument}: folders left out as output of apr-train itself: {counted(sorted(own))}")
    if len(text) < len(files):
        notice(f"{argument}: {len(files) - len(text)} of {len(files)} files have NUL bytes and are left out")
    if not text:
        raise _no_text(argument)
    return text


def _no_text(argument: str) -> DataError:
    return DataError("no text file in it", where=argument, expected="at least one file without NUL bytes")


def _found(argument: str, own: set[Path]) -> Iterator[Path]:
    """Every file below a folder, or that a glob leads to."""
    path = Path(argument)
    return _files_below(path, own) if path.exists() else _matched(argument, own)


def _matched(pattern: str, own: set[Path]) -> Iterator[Path]:
    found = sorted(set(matches(pattern, own)), key=str)
    if not found and not own:
        hint = "A glob needs quotes when the shell shall not expand it; ** goes into subfolders."
        raise DataError("no such file or folder, and no match as a glob", where=pattern, hint=hint)
    for path in found:
        if path.is_file():
            yield path
        elif path.is_dir() and is_own_output(path):
            own.add(path)
        elif path.name != COMPILED:
            yield from _files_below(path, own)


def _files_below(top: Path, own: set[Path], excluded: frozenset[str] = frozenset()) -> Iterator[Path]:
    if not top.is_dir():
        raise DataError("neither a file nor a folder", where=top, expected="text or JSONL")
    for folder, names in walk(top, own, excluded):
        yield from (path for path in (folder / name for name in names) if path.is_file())


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(_SNIFFED)


def _standard_library() -> list[Path]:
    """The interpreter's own modules, without tests, installed packages and the tables of the machine that built it."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = _files_below(folder, set(), _STDLIB_EXCLUDED) if folder.is_dir() else iter(())
    modules = [path for path in files if path.suffix == ".py" and not path.name.startswith("_sysconfigdata")]
    if not modules:
        hint = "Name a corpus with --data."
        raise DataError("this Python keeps no source of its standard library", where=folder, expected="*.py", hint=hint)
    return modules

"""Which files a corpus is made of, always in the same order."""

from __future__ import annotations

import glob
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from apr_train.data.protocols import Notice
from apr_train.errors import DataError

_STDLIB_EXCLUDED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_SNIFFED = 8192


def find_files(data: Iterable[str], *, notice: Notice) -> list[Path]:
    """The files behind `--data`, or the standard library's own source when there is no `--data`.

    A folder stands for every text file below it: hidden ones, `__pycache__` and files with a NUL byte near their start
    are left out, the last with a notice. A file that several arguments reach is taken once.

    Raises:
        DataError: when an argument matches nothing, or is something else than a file or a folder.
    """
    arguments = list(data)
    found = [path for argument in arguments for path in _expand(argument, notice)] if arguments else _standard_library()
    unique: dict[Path, Path] = {}
    for path in found:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def describe(data: Iterable[str]) -> str:
    """Where a corpus comes from, in words for a model card."""
    return ", ".join(data) or f"the standard library of Python {platform.python_version()} (PSF-2.0)"


def _expand(argument: str, notice: Notice) -> list[Path]:
    path = Path(argument)
    found = [argument] if path.exists() else sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - may be absolute
    matches = [Path(match) for match in found]
    if not matches:
        hint = "A glob needs quotes when the shell shall not expand it; ** goes into subfolders."
        raise DataError("no such file or folder, and no match as a glob", where=argument, hint=hint)
    files: list[Path] = []
    for match in matches:
        if match.is_dir():
            files += _text_files(match, notice)
        elif match.is_file():
            files.append(match)
        else:
            raise DataError("neither a file nor a folder", where=match, expected="text or JSONL")
    if not files:
        raise DataError("no text file in it", where=argument, expected="at least one file without NUL bytes")
    return files


def _text_files(folder: Path, notice: Notice) -> list[Path]:
    files = list(_walk(folder, excluded=frozenset()))
    text = [path for path in files if not _is_binary(path)]
    if len(text) < len(files):
        notice(f"{folder}: {len(files) - len(text)} of {len(files)} files have NUL bytes and are left out")
    return text


def _walk(folder: Path, *, excluded: frozenset[str]) -> Iterator[Path]:
    """Files below a folder, names sorted, neither hidden nor compiled."""

    def fail(error: OSError) -> None:
        raise DataError("cannot be read", where=error.filename or folder, found=error.strerror) from error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in excluded | {"__pycache__"})
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _is_binary(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(_SNIFFED)
    except OSError as error:
        raise DataError("cannot be read", where=path, found=error.strerror) from error


def _standard_library() -> list[Path]:
    """The interpreter's own modules, without tests, installed packages and the tables of the machine that built it."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = _walk(folder, excluded=_STDLIB_EXCLUDED) if folder.is_dir() else iter(())
    modules = [path for path in files if path.suffix == ".py" and not path.name.startswith("_sysconfigdata")]
    if not modules:
        hint = "Name a corpus with --data."
        raise DataError("this Python keeps no source of its standard library", where=folder, expected="*.py", hint=hint)
    return modules

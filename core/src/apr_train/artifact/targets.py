"""What a command may write over: never what it reads, what a run keeps, or a folder that it did not write. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from apr_train import rules
from apr_train.atomic import check_replaceable, write_file
from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.folder import some_of
from apr_train.errors import FormatError, OutputError
from apr_train.run.folder import is_kept_by_a_run

MARK = "apr-train.json"
"""The file by which a folder is known as one that apr-train wrote: which command, and what."""
_AUTHOR = "apr-train "
_UNCOMPARED = {"publish": frozenset({"SHA256SUMS"})}
"""Command → files of which the mark holds no sum: they hold the sum of the mark."""
_FILES = frozenset({".apr", ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".json"})
_BEGINNINGS = {".apr": b"APR", ".gguf": b"GGUF"}
"""Suffix → how every file of the kind begins, whatever its version."""
_OTHER_NAME = "Give another name: what is read is never written over."


def check_file(target: Path, sources: Iterable[Path], *, suffix: str, only: bool = False) -> None:
    """Refuse a file to be written that is one of the sources, that a run keeps, or that is of another kind.

    Args:
        target: the file to write, by whatever path or link.
        sources: every file that the command reads.
        suffix: what is written, by its suffix: a name that says another kind of file is refused.
        only: whether every other suffix is refused, and not only those of models and their files.

    Raises:
        OutputError: WRITE-001 or WRITE-003.
    """
    mine = _identity(target)
    if mine is not None and mine in set(map(_identity, sources)):
        raise OutputError("the target is a file of the source", where=target, rule=rules.WRITE_001, hint=_OTHER_NAME)
    if is_kept_by_a_run(target):
        problem, hint = "the target is a file that a training run keeps", "Give a name of another folder."
        raise OutputError(problem, where=target, rule=rules.WRITE_001, hint=hint)
    given = target.suffix.lower()
    if given not in ("", suffix) and (only or given in _FILES):
        expected, found = f"a name that ends in {suffix}", target.suffix
        problem = f"the name says another kind of file than the {suffix} that is written"
        raise OutputError(problem, where=target, rule=rules.WRITE_003, expected=expected, found=found)
    check_replaceable(target)
    _check_content(target, suffix)


def _check_content(target: Path, suffix: str) -> None:
    """Refuse a file that is there and, by how it begins, is not of the kind that is written; an empty one is nothing."""
    beginning = _BEGINNINGS.get(suffix)
    if beginning is None or not target.is_file():
        return
    try:
        with target.open("rb") as file:
            there = file.read(len(beginning))
    except OSError as error:
        hint = "It is not replaced, as it may be anything. Give another name."
        raise OutputError("the file cannot be read", where=target, rule=rules.WRITE_003, hint=hint) from error
    if there and there != beginning:
        raise OutputError(
            f"the file is there, and is not an {suffix} file",
            where=target,
            rule=rules.WRITE_003,
            expected=f"a file that begins with {beginning.decode()}, an empty one, or none",
            found=repr(there),
            hint="Give another name, or move away what is there.",
        )


def check_folder(target: Path, sources: Collection[Path], command: str) -> None:
    """Refuse a folder to be written that holds a source, or anything that `command` did not write there itself.

    Raises:
        OutputError: WRITE-001, WRITE-002 or WRITE-003.
    """
    if _holds(target, sources):
        raise OutputError(
            f"the folder holds the source, and {command} replaces all of it",
            where=target,
            rule=rules.WRITE_001,
            hint="Give a folder that does not exist yet.",
        )
    if target.is_dir():
        check_own(target, command)
    elif target.suffix.lower() in _FILES:
        raise OutputError(
            f"{command} writes a folder, and the name is that of a file",
            where=target,
            rule=rules.WRITE_003,
            expected="the name of a folder",
            found=target.suffix,
            hint="There is safetensors in the folder. For an .apr file: apr-train import SOURCE -o X.apr.",
        )


def check_own(folder: Path, command: str) -> None:
    """Refuse a folder, unless it is empty or holds just what `command` wrote into it, unchanged.

    Raises:
        OutputError: WRITE-002.
    """
    there = sorted(_files(folder))
    if not there and not any(folder.iterdir()):
        return
    author, written = _read_mark(folder)
    if author != command:
        problem = f"the folder is not one that apr-train {command} wrote"
        if author is None:
            raise _not_own(problem, folder, expected=MARK, found=_some(folder))
        raise _not_own(problem, folder, expected=f"a folder that {command} wrote", found=f"one that {author} wrote")
    if others := [name for name in there if name not in written and name != MARK]:
        raise _not_own(f"the folder holds files that apr-train {command} did not write", folder, found=some_of(others))
    uncompared = _UNCOMPARED.get(command, frozenset())
    names = [name for name in there if name != MARK]
    if changed := [name for name in names if not _is_as_noted(folder / name, written[name], name in uncompared)]:
        raise _not_own(f"files were changed since apr-train {command} wrote them", folder, found=some_of(changed))


def _is_as_noted(path: Path, noted: object, may_lack_sum: bool) -> bool:
    now = _print(path)
    return now is not None and (noted == now or (may_lack_sum and noted == {}))


def _not_own(problem: str, folder: Path, **facts: str) -> OutputError:
    hint = "Nothing was written. Give a folder that does not exist yet, or move away what you want to keep."
    return OutputError(problem, where=folder, rule=rules.WRITE_002, hint=hint, **facts)


def _some(folder: Path) -> str:
    return some_of(sorted(item.name for item in folder.iterdir()))


def mark(folder: Path, command: str, *, to_come: Iterable[str] = ()) -> None:
    """Note in a folder what is in it, so that the same command may replace it.

    Args:
        folder: the folder, complete but for `to_come`.
        command: who wrote it.
        to_come: names of files that are made after this one; their content is not compared later on.

    Raises:
        OutputError: the note cannot be written.
    """
    files = {name: _print(folder / name) for name in sorted(_files(folder))} | {name: {} for name in to_come}
    write_file(folder / MARK, (json.dumps({"made by": f"{_AUTHOR}{command}", "files": files}, indent=1) + "\n").encode())


def _read_mark(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Which command wrote the folder, and what it wrote into it; None when the folder does not carry a mark."""
    try:
        noted = parse_json(folder / MARK)
        author, files = noted["made by"], dict(noted["files"])
    except (FormatError, ValueError, KeyError, TypeError):
        return None, {}
    known = isinstance(author, str) and author.startswith(_AUTHOR)
    return (author.removeprefix(_AUTHOR) if known else None), files


def _files(folder: Path) -> Iterator[str]:
    """What lies in a folder, by path inside it: files, links, and folders without anything in them."""
    for root, folders, files in os.walk(folder):
        inside = Path(root).relative_to(folder)
        yield from (str(inside / name) for name in files)
        yield from (str(inside / name) for name in folders if (Path(root) / name).is_symlink())
        if not folders and not files and Path(root) != folder:
            yield str(inside)


def _print(path: Path) -> dict[str, Any] | None:
    """By what a file is known again; None for a link or a folder, which is never what was written."""
    if path.is_symlink() or not path.is_file():
        return None
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(target: Path, sources: Collection[Path]) -> bool:
    """Whether a source lies in the folder, by its own path or by where a link leads, or is one of its files (a hard link)."""
    folder = _identity(target)
    if folder is None:
        return False
    paths = {path for source in sources for path in (Path(os.path.abspath(source)), Path(os.path.realpath(source)))}  # noqa: PTH100
    if any(_identity(parent) == folder for path in paths for parent in path.parents):
        return True
    mine = set(map(_identity, sources))
    return any(_identity(target / name) in mine for name in _files(target))


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what a path leads to: the same for every spelling of it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino

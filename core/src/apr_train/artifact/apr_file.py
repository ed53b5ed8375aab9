"""Opening the one `.apr` file that a command changes or hands on; for anything else it says how to get one."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from apr_train import rules
from apr_train.checkpoint.apr import AprReader, open_apr
from apr_train.checkpoint.folder import ADAPTER, file_names, only_apr
from apr_train.checkpoint.given import absent, models_below
from apr_train.errors import FormatError
from apr_train.run.folder import ADAPTER_FOLDER, MODEL

EXPECTED = "an .apr file"


def open_apr_file(path: str | os.PathLike[str], *, in_shards: str) -> AprReader:
    """Open an `.apr` file; `in_shards` is the problem when it is a model in shards.

    Raises:
        FormatError: nothing there, a folder, a file of another kind, one shard of several, or a damaged file.
    """
    path = Path(path)
    if os.path.isdir(path):  # noqa: PTH112  # Path's raises for a long name
        raise _folder(path)
    if not os.path.lexists(path):
        raise absent(path, EXPECTED)
    try:
        source = open_apr(path)
    except FormatError as error:
        hint = _import(path) if error.finding.field == "magic" else ""
        raise error.amend(hint=error.finding.hint or hint) from error
    if isinstance(source, AprReader):
        return source
    source.close()
    raise FormatError(in_shards, path=path, hint=f"Import it into one file first: {_command(path)}")


def _folder(folder: Path) -> FormatError:
    try:
        hint = _hint(folder)
    except (OSError, FormatError):
        hint = None  # what cannot be looked into names nothing
    return FormatError("a folder, not a file", rule=rules.INIT_004, path=folder, expected=EXPECTED, hint=hint)


def _hint(folder: Path) -> str | None:
    """The `.apr` in a folder, or how to make one of what lies there or below.

    Raises:
        OSError: when the folder cannot be listed.
        FormatError: more than one `.apr` lies in it.
    """
    names = file_names(folder)
    inside = folder / MODEL if MODEL in names else only_apr(folder, names)
    if inside is not None:
        return f"Give the file in it: {inside}"
    if any(name.endswith(".safetensors") for name in names):
        return _import(folder)
    if (folder / ADAPTER_FOLDER / ADAPTER).is_file():
        return f"It trained an adapter; merge it first: apr-train merge {shlex.quote(str(folder))} -o X.apr."
    below = models_below(folder)
    return _import(Path(below[0])) if below else None


def _import(path: Path) -> str:
    return f"Convert it first: {_command(path)}"


def _command(path: Path) -> str:
    return f"apr-train import {shlex.quote(str(path))} -o X.apr."

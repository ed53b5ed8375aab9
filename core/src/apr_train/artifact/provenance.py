"""Set the provenance of an `.apr` file: licence, data, name; every tensor's bytes stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from apr_train.artifact.licenses import spdx_expression
from apr_train.checkpoint.apr import AprReader, Flags, open_apr, rewrite
from apr_train.checkpoint.apr.in_place import fits_in_place, recover, rewrite_in_place
from apr_train.errors import ConfigError, FormatError
from apr_train.run.folder import MODEL

Progress = Callable[[int], None]
LICENSES = ("license", "data_license")
KEYS = (*LICENSES, "data_source", "name", "version", "author", "description")
"""The metadata keys that a stamp sets."""


@frozen(kw_only=True)
class Stamped:
    """What a stamp did."""

    changes: Mapping[str, tuple[str | None, str]]
    """Key → (before, after), of the keys whose value changed; empty: the file was not written."""
    in_place: bool
    """Whether only header, metadata and checksum were written, and not the whole file anew."""
    recovered: bool
    """Whether an earlier stamp had been interrupted and was undone first."""


def stamp(path: str | os.PathLike[str], values: Mapping[str, str], *, progress: Progress | None = None) -> Stamped:
    """Set provenance keys; `values` maps some of `KEYS` to text, licences as SPDX expressions.

    Where the padded metadata keeps its size, only it, the header and the trailing checksum are written, in place (see
    `formats.apr.in_place` for why a crash cannot go unnoticed). Otherwise the file is copied with the new metadata beside
    itself, its checksum checked on the way, and replaced. Both give the same bytes.

    Args:
        path: an `.apr` file.
        values: what to set.
        progress: told of bytes of tensors that were copied.

    Raises:
        ConfigError: an unknown key, an empty text, or a licence that SPDX does not know.
        FormatError: not an `.apr` file, one shard of several, a signed or a damaged file.
        OutputError: the file cannot be written; it is then as it was.
    """
    wanted = checked_values(values)
    recovered = recover(path)
    with _open(path) as source:
        before = {key: source.raw_metadata.get(key) for key in wanted}
        changes = {key: (before[key], value) for key, value in wanted.items() if before[key] != value}
        metadata = {**source.raw_metadata, **wanted}
        in_place = bool(changes) and fits_in_place(source, metadata)
        if in_place:
            rewrite_in_place(source, metadata)
        elif changes:
            rewrite(source, path, metadata, progress=progress)
    return Stamped(changes=changes, in_place=in_place, recovered=recovered)


def checked_values(values: Mapping[str, str]) -> dict[str, str]:
    """The values as they will be written: stripped, licences in SPDX's own spelling.

    Raises:
        ConfigError: an unknown key, an empty text, or a licence that SPDX does not know.
    """
    checked = {}
    for key, value in values.items():
        if key not in KEYS:
            raise ConfigError("not a key that a stamp sets", where=key, expected=", ".join(KEYS))
        text, option = value.strip(), option_of(key)
        if not text:
            raise ConfigError("the value is empty", where=option, hint="Leave the option out to keep what the file says.")
        _check_unicode(text, option)
        checked[key] = spdx_expression(text, where=option) if key in LICENSES else text
    return checked


def option_of(key: str) -> str:
    """The command-line option of a metadata key."""
    return "--" + key.replace("_", "-")


def _check_unicode(text: str, option: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the value is not valid Unicode", where=option, found=repr(text)) from error


def what_to_give(error: FormatError, path: str | os.PathLike[str]) -> str | None:
    """Where `path` is no `.apr` file: how to get one, or which one lies in that folder."""
    if error.finding.field == "magic":
        return f"Convert it first: apr-train import {Path(path).name} -o X.apr."
    inside = Path(path) / MODEL
    return f"Give the file in it: {inside}" if inside.is_file() else None


def _open(path: str | os.PathLike[str]) -> AprReader:
    try:
        source = open_apr(path)
    except FormatError as error:
        raise error.amend(hint=error.finding.hint or what_to_give(error, path) or "") from error
    if isinstance(source, AprReader) and not source.flags & Flags.SIGNED:
        return source
    source.close()
    if isinstance(source, AprReader):
        problem, hint = "the file is signed: a stamp would break its signature", "Stamp it before it is signed."
    else:
        problem, hint = "a model in shards cannot be stamped", "Import it into one file first: apr-train import SRC -o X.apr."
    raise FormatError(problem, path=path, hint=hint)

"""Check an `.apr` file as a whole: structure, checksum, padding, and on request every value."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from apr_train import rules
from apr_train.checkpoint.apr.layout import Flags
from apr_train.checkpoint.apr.reader import AprReader
from apr_train.checkpoint.apr.shards import ShardedReader, open_apr
from apr_train.checkpoint.checkpoint import Checkpoint, TensorView
from apr_train.errors import Finding, FormatError

Progress = Callable[[int], None]


def validate(path: str | os.PathLike[str], *, data: bool = False, progress: Progress | None = None) -> list[Finding]:
    """Every fault of a file or of a sharded model; empty when there is none. Memory stays at a few megabytes.

    Structure is checked first and in full before data is read; with `data` every value is looked at for NaN and infinity.
    """
    try:
        reader = open_apr(path, verify=False)
    except FormatError as error:
        return [error.under(rules.APR_STRUCTURE)]
    with reader:
        return check_data(reader, data=data, progress=progress)


def check_data(reader: AprReader | ShardedReader, *, data: bool = False, progress: Progress | None = None) -> list[Finding]:
    """What `validate` does after the structure was found good: checksums, and with `data` every value."""
    return [
        *signature_findings(reader),
        *(finding for file in _files(reader) for finding in _check_file(file, data, progress or _silent)),
    ]


def signature_findings(checkpoint: Checkpoint) -> list[Finding]:
    """A warning for each signed file: signatures are not checked here. None for other containers."""
    files = _files(checkpoint) if isinstance(checkpoint, AprReader | ShardedReader) else []
    problem = "the file is signed, and the signature was not checked"
    return [
        Finding(rule=rules.APR_SIGNATURE, subject=file.header.path, problem=problem, severity="warning")
        for file in files
        if file.flags & Flags.SIGNED
    ]


def _files(reader: AprReader | ShardedReader) -> list[AprReader]:
    return reader.shards if isinstance(reader, ShardedReader) else [reader]


def _silent(count: int) -> None:
    """No progress is wanted."""


def _check_file(reader: AprReader, data: bool, progress: Progress) -> Iterator[Finding]:
    stream = reader.stream(verify=True)
    try:
        for name, entry in reader.entries.items():
            if data:
                yield from scan_values(reader.header.path, name, stream.values(name))
            else:
                for _ in stream.chunks(name):  # for its checksum
                    pass
            progress(entry.size)
        stream.finish()
    except FormatError as error:
        yield error.under(rules.APR_CHECKSUM)


def scan_values(path: str, name: str, pieces: Iterable[TensorView]) -> Iterator[Finding]:
    """A finding if any value of a tensor, given in pieces, is NaN or infinite."""
    nan = infinite = 0
    for piece in pieces:
        not_finite, nans = count_not_finite(piece)
        nan, infinite = nan + nans, infinite + not_finite - nans
    if nan or infinite:
        yield Finding(
            rule=rules.APR_NOT_FINITE,
            subject=path,
            field=name,
            problem="values that are not finite",
            expected="finite values",
            found=f"{nan} NaN, {infinite} infinite",
        )


def count_not_finite(view: TensorView) -> tuple[int, int]:
    """(values that are NaN or infinite, values that are NaN) of one tensor or piece."""
    array: np.ndarray[Any, Any] = view.data
    if view.dtype == "BF16":
        magnitude = array & np.uint16(0x7FFF)
        return int(np.count_nonzero(magnitude >= 0x7F80)), int(np.count_nonzero(magnitude > 0x7F80))
    if array.dtype.kind != "f":
        return 0, 0
    not_finite = array.size - int(np.count_nonzero(np.isfinite(array)))
    return not_finite, int(np.count_nonzero(np.isnan(array))) if not_finite else 0

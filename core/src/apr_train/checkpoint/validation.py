"""The faults of a whole checkpoint: its checksums, and on request every value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from apr_train import rules
from apr_train.checkpoint.apr.reader import AprReader
from apr_train.checkpoint.apr.shards import ShardedReader
from apr_train.checkpoint.checkpoint import Checkpoint, Progress, TensorView
from apr_train.checkpoint.dtypes import PACKED
from apr_train.errors import Finding, FormatError

SLICE = 1 << 20
"""Values of a container without checksums that are looked at in one go."""


def validate(checkpoint: Checkpoint, *, data: bool = False, progress: Progress | None = None) -> list[Finding]:
    """Every fault of an open checkpoint whose structure was found good; opening it has checked that.

    An `.apr` file, or each shard, is read whole for its checksum; memory stays at a few megabytes. The other containers have
    no checksum.

    Args:
        checkpoint: opened with `verify=False`, so that a wrong checksum is a finding.
        data: look at every value for NaN and infinity, in any container.
        progress: told of bytes of tensors.

    Raises:
        FormatError: for a tensor that cannot be decoded.
    """
    progress = progress or _silent
    if isinstance(checkpoint, AprReader | ShardedReader):
        faults = [finding for file in _files(checkpoint) for finding in _check_file(file, data, progress)]
        return [*checkpoint.header.findings, *faults]
    return [*checkpoint.header.findings, *(_scan(checkpoint, progress) if data else ())]


def _files(reader: AprReader | ShardedReader) -> list[AprReader]:
    return reader.shards if isinstance(reader, ShardedReader) else [reader]


def _silent(count: int) -> None:
    """No progress is wanted."""


def _check_file(reader: AprReader, data: bool, progress: Progress) -> Iterator[Finding]:
    stream = reader.stream(verify=True)
    try:
        for name, entry in reader.entries.items():
            if data:
                yield from _scan_tensor(reader.header.path, name, stream.values(name))
            else:
                for _ in stream.chunks(name):  # for its checksum
                    pass
            progress(entry.size)
        stream.finish()
    except FormatError as error:
        yield error.under(rules.APR_CHECKSUM)


def _scan(checkpoint: Checkpoint, progress: Progress) -> Iterator[Finding]:
    for name, tensor in checkpoint.header.tensors.items():
        if tensor.dtype in PACKED:
            continue  # four and six bits have no pattern for NaN or infinity
        view = checkpoint.read(name)
        flat = view.data.reshape(-1)
        pieces = (TensorView(view.dtype, flat[start : start + SLICE]) for start in range(0, flat.size, SLICE))
        yield from _scan_tensor(checkpoint.header.path, name, pieces)
        progress(tensor.nbytes)


def _scan_tensor(path: str, name: str, pieces: Iterable[TensorView]) -> Iterator[Finding]:
    """A finding if any value of a tensor, given in pieces, is NaN or infinite."""
    nan = infinite = 0
    for piece in pieces:
        not_finite, nans = _count_not_finite(piece)
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


def _count_not_finite(view: TensorView) -> tuple[int, int]:
    """(values that are NaN or infinite, values that are NaN) of one tensor or piece."""
    array: np.ndarray[Any, Any] = view.data
    if view.dtype == "BF16":
        magnitude = array & np.uint16(0x7FFF)
        return int(np.count_nonzero(magnitude >= 0x7F80)), int(np.count_nonzero(magnitude > 0x7F80))
    if array.dtype.kind not in "fc":
        return 0, 0
    not_finite = array.size - int(np.count_nonzero(np.isfinite(array)))
    return not_finite, int(np.count_nonzero(np.isnan(array))) if not_finite else 0

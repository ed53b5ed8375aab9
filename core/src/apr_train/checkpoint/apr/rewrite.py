"""The same tensors under other metadata, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from apr_train.checkpoint.apr.reader import AprReader
from apr_train.checkpoint.apr.writer import AprWriter, TensorSpec


def rewrite(
    source: AprReader,
    target: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `source`'s tensors with `metadata` instead of its own; flags and the order of the data are kept.

    `target` may be the source's own path. The source's checksum is checked on the bytes that are copied (if it was opened
    so) before the new file takes its place.

    Raises:
        FormatError: the source is damaged, or the metadata cannot be written.
        OutputError: the target cannot be written. An old file is then as it was.
    """
    entries = sorted(source.entries.values(), key=lambda entry: entry.offset)
    specs = [TensorSpec(entry.name, entry.dtype.name, entry.shape) for entry in entries]
    with (
        AprWriter(target, metadata, specs, flags=int(source.flags), keep_order=True) as writer,
        source.stream() as stream,
    ):
        for entry in entries:
            writer.write(entry.name, stream.chunks(entry.name))
            if progress is not None:
                progress(entry.size)

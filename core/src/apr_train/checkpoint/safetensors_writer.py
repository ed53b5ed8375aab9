"""Write safetensors files tensor by tensor, and split a model over several with an index when it is large."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apr_train.atomic import replace_file, write_all
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.safetensors import INDEX, SINGLE
from apr_train.checkpoint.safetensors_index import DTYPES
from apr_train.errors import FormatError

Pieces = Callable[[str], Iterable[np.ndarray[Any, Any] | memoryview]]
"""Tensor name → its bytes, in pieces."""
METADATA = {"format": "pt"}
"""transformers refuses a file without it."""


def write_safetensors(path: Path, tensors: Iterable[TensorInfo], pieces: Pieces) -> None:
    """Write one file, beside it first and then renamed; peak memory is one piece.

    Raises:
        FormatError: for a dtype that safetensors does not have, or data of the wrong size.
        OutputError: when the file cannot be written.
    """
    ordered = sorted(tensors, key=lambda tensor: (-DTYPES.get(tensor.dtype, 0), tensor.name))
    with replace_file(path) as file:
        write_all(file, _front(ordered, path))
        for tensor in ordered:
            written = sum(write_all(file, _bytes_of(piece)) for piece in pieces(tensor.name))
            if written != tensor.nbytes:
                raise FormatError("data of the wrong size", path=path, field=tensor.name, expected=tensor.nbytes, found=written)


def _front(tensors: Sequence[TensorInfo], path: Path) -> bytes:
    """The length and the JSON header, padded with spaces so that the data starts at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": METADATA}
    at = 0
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise FormatError("safetensors has no such dtype", path=path, field=tensor.name, found=tensor.dtype)
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _bytes_of(piece: np.ndarray[Any, Any] | memoryview) -> memoryview:
    view = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data if isinstance(piece, np.ndarray) else piece
    return view.cast("B") if view.nbytes else memoryview(b"")


def write_sharded(folder: Path, tensors: Sequence[TensorInfo], pieces: Pieces, *, limit: int) -> list[str]:
    """Write `model.safetensors`, or numbered shards of at most `limit` bytes (one tensor may be larger) and their index.

    Returns the names of the weight files.

    Raises:
        FormatError, OutputError: as `write_safetensors`.
    """
    shards = _split(tensors, limit)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE, shards[0], pieces)
        return [SINGLE]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, pieces)
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    _write_index(folder / INDEX, weight_map, sum(tensor.nbytes for tensor in tensors))
    return names


def _split(tensors: Sequence[TensorInfo], limit: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(item.nbytes for item in shards[-1]) + tensor.nbytes > limit:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _write_index(path: Path, weight_map: Mapping[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

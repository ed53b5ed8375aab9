"""safetensors: one file or a Hugging Face folder, its header checked before anything is touched; and the writer.

Format: 8 bytes of little-endian length, that many bytes of JSON, then the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Self, TypeGuard

import attrs
import numpy as np
from attrs import frozen

from apr_train import rules
from apr_train.atomic import replace_file, write_all
from apr_train.checkpoint.checkpoint import TensorView, content_hash
from apr_train.checkpoint.companions import companions_of, files_beside, files_of_folder, readme_facts, reference_beside
from apr_train.checkpoint.dtypes import PACKED, PLAIN, SAFETENSORS, addressable, bytes_of, plain_view
from apr_train.checkpoint.files import LARGEST_POINTER, json_value, map_file, open_regular, parse_json, refuse_pointer
from apr_train.checkpoint.folder import EXPLICIT, INDEX, SINGLE, WeightFiles, find_weights
from apr_train.checkpoint.foreign import foreign
from apr_train.checkpoint.given import no_weights
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.huggingface import header_from_hf, tokenizer_of
from apr_train.errors import Finding, FormatError

MAX_HEADER = 100_000_000
"""The safetensors library's own limit."""
MAX_DIMENSIONS = 64
MAX_NAME = 1000
"""Characters of a tensor's name; `.apr` has room for 256 bytes, GGML for 64."""


@frozen
class Extent:
    """Where a tensor's bytes lie in its file."""

    start: int
    end: int


@frozen(kw_only=True)
class Index:
    """A checked header: tensors, absolute extents, and the free-form string metadata."""

    tensors: Mapping[str, TensorInfo]
    extents: Mapping[str, Extent]
    metadata: Mapping[str, str]


def read_index(path: Path) -> Index:
    """Read and check a file's header; of the data only its length is looked at.

    Raises:
        FormatError: for a length that lies, JSON that is none, unknown dtypes, wrong sizes, holes or overlaps.
    """
    with open_regular(path) as file:
        file_size = os.fstat(file.fileno()).st_size
        try:
            raw = _header_bytes(file, file_size, path)
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror}", path=path) from error
    entries = _entries(raw, path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise FormatError("not a table of strings", path=path, field="__metadata__")
    base = 8 + len(raw)
    tensors: dict[str, TensorInfo] = {}
    extents: dict[str, Extent] = {}
    for name, entry in entries.items():
        tensors[name], (start, end) = _tensor(name, entry, path)
        extents[name] = Extent(base + start, base + end)
    _check_cover(extents, base, file_size, path)
    return Index(tensors=tensors, extents=extents, metadata=metadata)


def _header_bytes(file: BinaryIO, file_size: int, path: Path) -> bytes:
    start = file.read(LARGEST_POINTER)
    refuse_pointer(start, path)
    if start[8:9] != b"{" and (error := foreign(start, path)) is not None:
        raise error
    prefix = start[:8]
    file.seek(len(prefix))
    if len(prefix) < 8:
        raise FormatError(
            "too short for a safetensors file", path=path, expected="at least 8 bytes", found=f"{file_size} bytes"
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER, file_size - 8):
        limit = min(MAX_HEADER, file_size - 8)
        raise FormatError("the header is longer than the file", path=path, field="header length", expected=limit, found=length)
    return file.read(length)


def _entries(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except ValueError as error:
        raise FormatError(f"the header is not UTF-8: {error}", path=path, field="header") from error
    entries = json_value(text, path, field="header", unique=True)
    if not isinstance(entries, dict):
        raise FormatError("the header is not an object", path=path, field="header")
    return entries


def _tensor(name: str, entry: Any, path: Path) -> tuple[TensorInfo, tuple[int, int]]:
    field = name
    if not name or "\0" in name or len(name) > MAX_NAME:
        raise FormatError("not a usable tensor name", path=path, field=field, expected=f"1 to {MAX_NAME} characters")
    if not isinstance(entry, dict):
        raise FormatError("not an object", path=path, field=field)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SAFETENSORS:
        raise FormatError(
            "unknown dtype", path=path, field=field, expected=f"one of {', '.join(SAFETENSORS)}", found=repr(dtype)[:40]
        )
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise FormatError("not a shape", path=path, field=field, expected="non-negative integers", found=repr(shape)[:80])
    if not addressable(shape):
        raise FormatError("impossible shape", path=path, field=field, found=f"{shape!r:.80}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError("not a pair of offsets", path=path, field=field, found=repr(offsets)[:80])
    elements = math.prod(shape)
    if not SAFETENSORS[dtype].fits(elements):
        expected = f"a multiple of {SAFETENSORS[dtype].block} elements, which fill whole bytes"
        raise FormatError("elements that end inside a byte", path=path, field=field, expected=expected, found=elements)
    nbytes = SAFETENSORS[dtype].nbytes(elements)
    if offsets[1] - offsets[0] != nbytes:
        found = offsets[1] - offsets[0]
        raise FormatError("size and shape disagree", path=path, field=field, expected=f"{nbytes} bytes", found=found)
    return TensorInfo(name, dtype, tuple(shape), nbytes), (offsets[0], offsets[1])


def _sizes(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    return all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63 for item in value)


def _check_cover(extents: Mapping[str, Extent], base: int, file_size: int, path: Path) -> None:
    """The tensors must cover the data from its first byte to its last, once: that is safetensors' own rule."""
    at = base
    for name, extent in sorted(extents.items(), key=lambda item: (item[1].start, item[1].end)):
        if extent.start != at:
            problem = "overlaps another tensor" if extent.start < at else "leaves a hole before it"
            raise FormatError(problem, path=path, field=name, expected=at - base, found=extent.start - base)
        at = extent.end
    if at != file_size:
        raise FormatError(
            "the file is not as long as its header says", path=path, expected=f"{at} bytes", found=f"{file_size} bytes",
            hint="It is truncated, or something was appended.",
        )  # fmt: skip


class SafetensorsReader:
    """An open safetensors checkpoint; tensors are views of the memory maps. Make it with `open`."""

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        files: Mapping[Path, Mapping[str, Extent]],
        infos: Mapping[str, TensorInfo],
        findings: tuple[Finding, ...] = (),
    ) -> None:
        folder = path if path.is_dir() else path.parent
        self.config = config
        facts = readme_facts(folder)
        self.header = header_from_hf(
            str(path),
            {key: value for key, value in config.items() if key != EXPLICIT},
            dict(sorted(infos.items())),
            tokenizer=tokenizer_of(folder, config),
            companions=companions_of(folder, {key: value for key, value in config.items() if key != EXPLICIT}),
            provenance={key: facts[key] for key in ("license", "author") if key in facts},
        )
        findings = (*self.header.findings, *findings)
        self.header = attrs.evolve(self.header, findings=findings, extra=reference_beside(folder))
        self._weights = tuple(files)
        self._places = {name: (file, extent) for file, extents in files.items() for name, extent in extents.items()}
        self._maps: dict[Path, memoryview] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file, or a folder.

        Raises:
            FormatError: for anything that is not as the format says, in any of the files.
        """
        folder = path if path.is_dir() else path.parent
        config_file = folder / "config.json"
        config = parse_json(config_file) if config_file.is_file() else {}
        weights = _weights_of(folder, config) if path.is_dir() else WeightFiles(files={path.name: None})
        files: dict[Path, Mapping[str, Extent]] = {}
        infos: dict[str, TensorInfo] = {}
        for name, expected in weights.files.items():
            file = folder / name
            index = read_index(file)
            _check_shard(file, expected, index.tensors, infos)
            files[file] = index.extents
            infos.update(index.tensors)
        return cls(path, config, files, infos, weights.findings(folder))

    @property
    def files(self) -> tuple[Path, ...]:
        """The weights, and what else the folder has; of a file that was named alone, what lies beside it by its name."""
        path = Path(self.header.path)
        return files_of_folder(path, self._weights) if path.is_dir() else files_beside(path.parent, self._weights)

    def read(self, name: str) -> TensorView:
        """The tensor, zero-copy.

        Raises:
            FormatError: for a type of which nothing here has the values.
        """
        tensor = self.header.tensors[name]
        if tensor.dtype in PACKED:
            raise FormatError(
                "a type whose values are not read here",
                rule=rules.PREFLIGHT_006,
                path=self.header.path,
                field=name,
                expected=f"one of {', '.join(PLAIN)}",
                found=tensor.dtype,
            )
        return plain_view(tensor.dtype, tensor.shape, self.read_raw(name))

    def read_raw(self, name: str) -> memoryview:
        """The tensor's bytes as they lie in the file."""
        file, extent = self._places[name]
        if file not in self._maps:
            self._maps[file] = map_file(file)
        return self._maps[file][extent.start : extent.end]

    def content_hash(self) -> str:
        """SHA-256 over config.json, names, dtypes, shapes and bytes."""
        return content_hash(self.config, self.header.tensors, self.read_raw)

    def close(self) -> None:
        """Let go of the files; maps that views still use stay until those are gone."""
        self._maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _weights_of(folder: Path, config: Mapping[str, Any]) -> WeightFiles:
    weights = find_weights(folder, config)
    if weights is None:
        raise no_weights(folder)
    return weights


def _check_shard(
    file: Path, expected: frozenset[str] | None, found: Mapping[str, TensorInfo], earlier: Mapping[str, TensorInfo]
) -> None:
    twice = sorted(set(found) & set(earlier))
    if twice:
        raise FormatError("a tensor is in two shards", path=file, field=twice[0])
    if expected is not None and expected != set(found):
        missing, extra = sorted(expected - set(found)), sorted(set(found) - expected)
        raise FormatError(
            "the shard does not hold what the index says",
            path=file,
            expected=f"{len(expected)} tensors" + (f", {missing[0]} among them" if missing else ""),
            found=f"{len(found)} tensors" + (f", {extra[0]} among them" if extra else ""),
            hint="The index and the files are of two models, or one of them was changed: fetch them again together.",
        )


PiecesOf = Callable[[str], Iterable[np.ndarray[Any, Any] | memoryview]]
"""Tensor name → its bytes, in pieces."""
METADATA = {"format": "pt"}
"""transformers refuses a file without it."""


def write_safetensors(
    path: Path, tensors: Sequence[TensorInfo], pieces: PiecesOf, *, note: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write one file, beside it first and then renamed; peak memory is one piece. `note` goes into its `__metadata__`.

    Raises:
        FormatError: for a dtype that safetensors does not have, or data of the wrong size.
        OutputError: when the file cannot be written.
    """
    for tensor in tensors:
        if tensor.dtype not in PLAIN:
            raise FormatError("safetensors has no such dtype", path=path, field=tensor.name, found=tensor.dtype)
    ordered = sorted(tensors, key=lambda tensor: (-PLAIN[tensor.dtype].block_bytes, tensor.name))
    with replace_file(path) as file:
        write_all(file, _front(ordered, note))
        for tensor in ordered:
            written = sum(write_all(file, bytes_of(piece)) for piece in pieces(tensor.name))
            if written != tensor.nbytes:
                raise FormatError("data of the wrong size", path=path, field=tensor.name, expected=tensor.nbytes, found=written)


def _front(tensors: Sequence[TensorInfo], note: Mapping[str, str]) -> bytes:
    """The length and the JSON header, padded with spaces so that the data starts at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {**METADATA, **note}}
    at = 0
    for tensor in tensors:
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def write_sharded(folder: Path, tensors: Sequence[TensorInfo], pieces: PiecesOf, *, limit: int) -> list[str]:
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

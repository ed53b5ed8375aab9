"""An `.apr` model in several files (shards), read through its manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from apr_train import rules
from apr_train.checkpoint.apr.layout import Flags
from apr_train.checkpoint.apr.metadata import header_from_apr, parse_metadata
from apr_train.checkpoint.apr.reader import AprReader, tensor_infos
from apr_train.checkpoint.apr.tensors import check_tied_head
from apr_train.checkpoint.checkpoint import Progress, TensorView, content_hash
from apr_train.checkpoint.companions import files_beside
from apr_train.checkpoint.files import MAX_BYTES, InputFile, parse_json
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.errors import FormatError

MAX_SHARDS = 100_000


def open_apr(path: str | os.PathLike[str], *, verify: bool = True) -> AprReader | ShardedReader:
    """Open an `.apr` file, a shard's whole model, or a shard manifest, by content.

    Raises:
        FormatError: whatever is wrong with it.
    """
    file = InputFile(path)
    try:
        first = file.read(0, min(64, file.size))
        if first.lstrip()[:1] == b"{":
            return ShardedReader(path, read_manifest(file), verify=verify)
        reader = AprReader.over(file, verify=verify)
    except BaseException:
        file.close()
        raise
    if not reader.flags & Flags.SHARDED:
        return reader
    reader.close()
    manifest = find_manifest(Path(path))
    return ShardedReader(manifest, read_manifest(InputFile(manifest)), verify=verify)


def find_manifest(shard: Path) -> Path:
    """The one manifest in a shard's folder that lists it.

    Raises:
        FormatError: there is none, or more than one.
    """
    found = [candidate for candidate in sorted(shard.parent.glob("*.json")) if _lists(candidate, shard.name)]
    if len(found) != 1:
        problem = "this is one shard of several, and no manifest lists it" if not found else "several manifests list this shard"
        hint = "Put the manifest (.json) beside it." if not found else "Give the manifest that is meant instead."
        raise FormatError(problem, path=shard, found=", ".join(item.name for item in found) or None, hint=hint)
    return found[0]


def _lists(candidate: Path, name: str) -> bool:
    try:
        return any(shard["filename"] == name for shard in parse_json(candidate)["shards"])
    except (FormatError, KeyError, TypeError):
        return False  # another kind of JSON file


@attrs.frozen
class Manifest:
    """What a shard manifest says, checked."""

    files: tuple[str, ...]
    """Names in the manifest's own folder, in shard order."""
    weight_map: Mapping[str, int]


def read_manifest(file: InputFile) -> Manifest:
    """Read and check a manifest; closes the file.

    Raises:
        FormatError: not a manifest, or one whose names lead out of its folder or whose numbers contradict each other.
    """
    path = file.path
    try:
        if file.size > MAX_BYTES:
            raise FormatError("too large for a shard manifest", path=path, found=f"{file.size} bytes")
        raw = parse_metadata(file.read(0, file.size), path)
    finally:
        file.close()
    shards, weight_map = raw.get("shards"), raw.get("weight_map")
    if not isinstance(shards, list) or not isinstance(weight_map, dict) or not 0 < len(shards) <= MAX_SHARDS:
        raise FormatError("not a shard manifest", path=path, expected="an object with shards and weight_map")
    if raw.get("shard_count") != len(shards):
        raise FormatError("wrong count", path=path, field="shard_count", expected=len(shards), found=raw.get("shard_count"))
    if raw.get("tensor_count") != len(weight_map):
        problem = "wrong count"
        raise FormatError(problem, path=path, field="tensor_count", expected=len(weight_map), found=raw.get("tensor_count"))
    return Manifest(_files(shards, path), _checked_map(weight_map, len(shards), path))


def _files(shards: list[Any], path: Path) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for position, shard in enumerate(shards):
        name = shard.get("filename") if isinstance(shard, dict) else None
        number = shard.get("index", position) if isinstance(shard, dict) else None
        plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}
        if not plain:
            expected = "a name in the manifest's own folder"
            raise FormatError(
                "bad file name", path=path, field=f"shards[{position}].filename", expected=expected, found=repr(name)
            )
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(shards) or number in names:
            raise FormatError("bad shard number", path=path, field=f"shards[{position}].index", found=repr(number))
        names[number] = str(name)
    if len(set(names.values())) != len(names):
        raise FormatError("two shards have the same file", path=path, field="shards")
    return tuple(names[number] for number in sorted(names))


def _checked_map(weight_map: Mapping[str, Any], count: int, path: Path) -> dict[str, int]:
    for name, number in weight_map.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            problem = "not a shard's number"
            raise FormatError(problem, path=path, field=f"weight_map[{name}]", expected=f"0 to {count - 1}", found=repr(number))
    return dict(weight_map)


class ShardedReader:
    """All shards behind one `Checkpoint`; the first shard's metadata is the model's."""

    header: Header
    raw_metadata: Mapping[str, Any]

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest, *, verify: bool) -> None:
        self.verify_data = verify
        self.weight_map = manifest.weight_map
        self.shards: list[AprReader] = []
        try:
            for name in manifest.files:
                self.shards.append(AprReader.over(InputFile(Path(path).parent / name), verify=verify))
            tensors = self._tensors(path)
            check_tied_head(path, tensors)
        except BaseException:
            self.close()
            raise
        self.raw_metadata = {key: value for key, value in self.shards[0].raw_metadata.items() if key != "sharding"}
        header = header_from_apr(str(path), self.raw_metadata, tensors)
        signed = [finding for shard in self.shards for finding in shard.header.findings if finding.rule == rules.APR_SIGNATURE]
        self.header = attrs.evolve(header, findings=(*signed, *header.findings))
        self._parts = (Path(path), *(Path(shard.header.path) for shard in self.shards))

    def _tensors(self, path: object) -> dict[str, TensorInfo]:
        """The union of the shards' indexes, which must be exactly what the manifest says."""
        found = {(name, number) for number, shard in enumerate(self.shards) for name in shard.entries}
        stated = set(self.weight_map.items())
        if found != stated:
            name, number = sorted(found ^ stated)[0]
            problem = "the manifest and the shards disagree"
            where = "not in that shard" if (name, number) in stated else "not in the manifest"
            raise FormatError(problem, path=path, field=f"weight_map[{name}]", found=f"shard {number}: {where}")
        found_in = [tensor_infos(shard.entries) for shard in self.shards]
        return {name: found_in[number][name] for name, number in sorted(self.weight_map.items())}

    def _shard(self, name: str) -> AprReader:
        return self.shards[self.weight_map[name]]

    @property
    def files(self) -> tuple[Path, ...]:
        """The manifest, every shard, and what lies beside them by its name."""
        return files_beside(self._parts[0].parent, self._parts)

    def stream(self, *, verify: bool | None = None) -> ShardedStream:
        """As `AprReader.stream`, over all shards."""
        return ShardedStream(self, verify=verify)

    def verify_once(self, progress: Progress | None = None) -> None:
        """As `AprReader.verify_once`."""
        for shard in self.shards:
            shard.verify_once(progress)

    def count_as_verified(self) -> None:
        """As `AprReader.count_as_verified`."""
        for shard in self.shards:
            shard.count_as_verified()

    def read(self, name: str) -> TensorView:
        """As `AprReader.read`."""
        view = self._shard(name).read(name)
        return TensorView(view.dtype, view.data.reshape(self.header.tensors[name].shape))

    def read_raw(self, name: str) -> memoryview:
        """As `AprReader.read_raw`."""
        return self._shard(name).read_raw(name)

    def content_hash(self) -> str:
        """As `AprReader.content_hash`: the same as that of the model in one file."""
        return content_hash(self.raw_metadata, self.header.tensors, self.read_raw)

    def close(self) -> None:
        """Let go of all shards."""
        for shard in self.shards:
            shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class ShardedStream:
    """As `AprStream`, over all shards."""

    def __init__(self, reader: ShardedReader, *, verify: bool | None) -> None:
        self._map = reader.weight_map
        self._streams = [shard.stream(verify=verify) for shard in reader.shards]

    def read_into(self, name: str, buffer: memoryview) -> None:
        """As `AprStream.read_into`."""
        self._streams[self._map[name]].read_into(name, buffer)

    def parts(self, name: str, buffer: memoryview) -> Iterator[Callable[[], int]]:
        """As `AprStream.parts`."""
        return self._streams[self._map[name]].parts(name, buffer)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """As `AprStream.chunks`."""
        return self._streams[self._map[name]].chunks(name)

    def values(self, name: str) -> Iterator[TensorView]:
        """As `AprStream.values`."""
        return self._streams[self._map[name]].values(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            for stream in self._streams:
                stream.finish()

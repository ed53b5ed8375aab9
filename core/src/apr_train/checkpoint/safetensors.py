"""safetensors checkpoints: one file, or a Hugging Face folder with config.json, shards and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from apr_train import rules
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.checkpoint.content_hash import content_hash
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.hf_folder import readme_license, tokenizer_of
from apr_train.checkpoint.huggingface import header_from_hf
from apr_train.checkpoint.json_text import parse_json
from apr_train.checkpoint.safetensors_index import Extent, read_index
from apr_train.checkpoint.views import map_file, plain_view
from apr_train.errors import FormatError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class SafetensorsReader:
    """An open safetensors checkpoint; tensors are views of the memory maps. Make it with `open`."""

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        files: Mapping[Path, Mapping[str, Extent]],
        infos: Mapping[str, TensorInfo],
    ) -> None:
        folder = path if path.is_dir() else path.parent
        self.config = config
        license_name = readme_license(folder)
        self.header = header_from_hf(
            str(path),
            config,
            dict(sorted(infos.items())),
            tokenizer=tokenizer_of(folder, config),
            provenance={"license": license_name} if license_name else {},
        )
        self._places = {name: (file, extent) for file, extents in files.items() for name, extent in extents.items()}
        self._maps: dict[Path, memoryview] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file, or a folder.

        Raises:
            FormatError: for anything that is not as the format says, in any of the files.
        """
        shards = _shards(path) if path.is_dir() else {path: None}
        config_file = (path if path.is_dir() else path.parent) / "config.json"
        config = parse_json(config_file) if config_file.is_file() else {}
        files: dict[Path, Mapping[str, Extent]] = {}
        infos: dict[str, TensorInfo] = {}
        for file, expected in shards.items():
            index = read_index(file)
            _check_shard(file, expected, index.tensors, infos)
            files[file] = index.extents
            infos.update(index.tensors)
        return cls(path, config, files, infos)

    def read(self, name: str) -> TensorView:
        """The tensor, zero-copy."""
        tensor = self.header.tensors[name]
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


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """The files of a folder, each with the tensors that the index promises (None: no index)."""
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return {found[0]: None}
    pickled = sorted(item.name for item in folder.iterdir() if item.suffix in (".bin", ".pt", ".pth"))
    raise FormatError(
        "the folder holds no safetensors checkpoint",
        rule=rules.INIT_003,
        path=folder,
        expected=f"{SINGLE} or {INDEX}",
        found=", ".join(item.name for item in found) or ", ".join(pickled) or "none of them",
        hint="Pickle files are never read: convert them to safetensors." if pickled and not found else None,
    )


def _indexed(folder: Path) -> dict[Path, set[str] | None]:
    weight_map = parse_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("no weight_map", path=folder / INDEX, field="weight_map", expected="tensor name → file name")
    shards: dict[Path, set[str] | None] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise FormatError("a shard is not a file name in this folder", path=folder / INDEX, field=tensor, found=repr(name))
        names = shards.setdefault(folder / name, set())
        if names is not None:
            names.add(tensor)
    return shards


def _check_shard(
    file: Path, expected: set[str] | None, found: Mapping[str, TensorInfo], earlier: Mapping[str, TensorInfo]
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
        )

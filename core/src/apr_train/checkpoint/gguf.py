"""GGUF checkpoints (llama.cpp's files, read-only): the reader, and their metadata as the canonical header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from apr_train import rules
from apr_train.checkpoint.checkpoint import TensorView, content_hash
from apr_train.checkpoint.companions import files_beside
from apr_train.checkpoint.dtypes import Array, plain_view
from apr_train.checkpoint.files import map_file
from apr_train.checkpoint.gguf_index import GgufIndex, read_gguf_index
from apr_train.checkpoint.gguf_keys import config_of_keys, keys_of_config, plain, rope_of_keys
from apr_train.checkpoint.gguf_rope import OWN_KEYS, is_table, keys_of_tables, scaling_of_tables
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.implied import all_heads
from apr_train.checkpoint.quantization import dequantize
from apr_train.checkpoint.rope_rows import gguf_rope_rows
from apr_train.checkpoint.tie import embedding_name, tie_from_index
from apr_train.checkpoint.tokenizer_metadata import spec_beside, spec_from_gguf
from apr_train.errors import FormatError

TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
MODEL = "model"
GENERAL = {
    "general.name": "name",
    "general.description": "description",
    "general.author": "author",
    "general.license": "license",
    "general.version": "version",
}
BOOKKEEPING = ("general.", "tokenizer.", "split.", "quantize.", "imatrix.", "GGUF.", OWN_KEYS)
"""Beginnings of keys that say nothing about the mathematics, or that are read elsewhere."""


def header_from_gguf(
    path: str, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], tables: Mapping[str, Array] | None = None
) -> Header:
    """The canonical header of a GGUF file; `metadata` is its parsed key-value section, `tables` what it has of `gguf_rope`'s.

    32-bit floats are spelled as people wrote them (1e-5, not 9.999999747378752e-06). The vocabulary size is the
    metadata's, or the embedding matrix's rows; absent kv heads mean as many as query heads (that is GGUF's definition).

    Raises:
        FormatError: without `general.architecture`, or when tokenizer metadata is malformed.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise FormatError("GGUF metadata names no architecture", path=path, field="general.architecture")
    _check_type(path, metadata)
    config = _config(metadata, architecture, tensors, tables or {})
    says = f"{architecture}.attention.head_count_kv" in metadata or "num_key_value_heads" not in config
    return Header(
        path=path,
        format="gguf",
        architecture=architecture.lower(),
        config=config,
        tensors=tensors,
        names="gguf",
        rope_rows=gguf_rope_rows(architecture.lower()),
        tie=tie_from_index(config, tensors),
        tokenizer=spec_from_gguf(path, metadata) or spec_beside(Path(path)),
        further=_further(metadata, architecture, config.get("rope_scaling")),
        findings=() if says else (all_heads(path, config["num_key_value_heads"]),),
        provenance={
            "original_format": "gguf",
            **{name: metadata[key] for key, name in GENERAL.items() if isinstance(metadata.get(key), str)},
        },
    )


def _check_type(path: str, metadata: Mapping[str, Any]) -> None:
    kind = metadata.get("general.type", MODEL)
    if kind != MODEL:
        adapter = "Merge it into its base model first." if kind == "adapter" else None
        raise FormatError(
            "the GGUF holds no whole model",
            rule=rules.INIT_004,
            path=path,
            field="general.type",
            expected=MODEL,
            found=str(kind),
            hint=adapter,
        )


def _further(metadata: Mapping[str, Any], architecture: str, scaling: object) -> dict[str, Any]:
    """Every key that the config was not made of, in GGUF's own spelling; what it means is for the preflight to judge."""
    read = keys_of_config(architecture) | keys_of_tables(architecture, scaling)
    return {key: plain(value) for key, value in metadata.items() if key not in read and not key.startswith(BOOKKEEPING)}


def _config(
    metadata: Mapping[str, Any], architecture: str, tensors: Mapping[str, TensorInfo], tables: Mapping[str, Array]
) -> dict[str, Any]:
    config = config_of_keys(metadata, architecture)
    for key, name in TOKEN_IDS.items():
        if isinstance(metadata.get(f"tokenizer.ggml.{key}"), int):
            config[name] = metadata[f"tokenizer.ggml.{key}"]
    if "num_attention_heads" in config:
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
    embedding = embedding_name(tensors)
    if embedding is not None and len(tensors[embedding].shape) == 2:
        config.setdefault("vocab_size", tensors[embedding].shape[0])
    config |= rope_of_keys(metadata, architecture, config)
    scaling = scaling_of_tables(metadata, architecture, config, tables) if "rope_scaling" not in config else None
    return config if scaling is None else {**config, "rope_scaling": scaling}


class GgufReader:
    """An open GGUF file; plain tensors are views of the memory map, quantised ones arrive as F32. Make it with `open`."""

    def __init__(self, path: Path, data: memoryview, index: GgufIndex) -> None:
        self.metadata = index.metadata
        self._data = data
        self._places = index.places
        tables = {name: self._plain(info) for name, info in index.tensors.items() if is_table(info)}
        self.header = header_from_gguf(str(path), index.metadata, dict(sorted(index.tensors.items())), tables)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file; nothing but its front and its tables of rotary factors is read.

        Raises:
            FormatError: for anything that is not as the format says.
        """
        data = map_file(path)
        return cls(path, data, read_gguf_index(data, path))

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and what lies beside it by its name."""
        path = Path(self.header.path)
        return files_beside(path.parent, [path])

    def read(self, name: str) -> TensorView:
        """The tensor: zero-copy if it is plain, dequantised to F32 if not."""
        tensor, place = self.header.tensors[name], self._places[name]
        raw = self.read_raw(name)
        if not place.dtype.quantized:
            return plain_view(tensor.dtype, tensor.shape, raw)
        floats = dequantize(place.dtype, raw, tensor.elements, path=self.header.path, name=name)
        return TensorView("F32", floats.reshape(tensor.shape))

    def _plain(self, info: TensorInfo) -> Array:
        """A tensor of plain numbers, copied: no header holds on to the file."""
        return np.array(plain_view(info.dtype, info.shape, self.read_raw(info.name)).data)

    def read_raw(self, name: str) -> memoryview:
        """The tensor's bytes as they lie in the file."""
        place = self._places[name]
        return self._data[place.start : place.end]

    def content_hash(self) -> str:
        """SHA-256 over metadata, names, dtypes, shapes and bytes."""
        return content_hash(self.metadata, self.header.tensors, self.read_raw)

    def close(self) -> None:
        """Let go of the file; the map stays until the last view is gone."""
        self._data = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

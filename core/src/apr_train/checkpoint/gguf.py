"""GGUF checkpoints (llama.cpp's files, read-only): the reader, and their metadata as the canonical header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from apr_train import rules
from apr_train.checkpoint.checkpoint import TensorView, content_hash
from apr_train.checkpoint.companions import files_beside
from apr_train.checkpoint.dtypes import plain_view, shortest_f32
from apr_train.checkpoint.files import map_file
from apr_train.checkpoint.gguf_index import GgufIndex, read_gguf_index
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.implied import all_heads
from apr_train.checkpoint.quantization import dequantize
from apr_train.checkpoint.rope_rows import gguf_rope_rows
from apr_train.checkpoint.tie import embedding_name, tie_from_index
from apr_train.checkpoint.tokenizer_metadata import spec_beside, spec_from_gguf
from apr_train.errors import FormatError

KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_multiplier",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
"""Key below the architecture's prefix → Hugging Face's name."""
TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
MODEL = "model"
GENERAL = {
    "general.name": "name",
    "general.description": "description",
    "general.author": "author",
    "general.license": "license",
    "general.version": "version",
}
_ZERO_IS_NONE = frozenset({
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "sliding_window", "attention_multiplier",
    "embedding_multiplier", "residual_multiplier", "logits_scaling",
})  # fmt: skip
"""Where llama.cpp reads 0 as: not used."""
BOOKKEEPING = ("general.", "tokenizer.", "split.", "quantize.", "imatrix.", "GGUF.")
"""Beginnings of keys that say nothing about the mathematics, or that are read elsewhere."""
ROPE_KEYS = frozenset({"rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"})
"""Keys that the config's rope_scaling and partial_rotary_factor are made of."""


def header_from_gguf(path: str, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Header:
    """The canonical header of a GGUF file; `metadata` is its parsed key-value section.

    32-bit floats are spelled as people wrote them (1e-5, not 9.999999747378752e-06). The vocabulary size is the
    metadata's, or the embedding matrix's rows; absent kv heads mean as many as query heads (that is GGUF's definition).

    Raises:
        FormatError: without `general.architecture`, or when tokenizer metadata is malformed.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise FormatError("GGUF metadata names no architecture", path=path, field="general.architecture")
    _check_type(path, metadata)
    config = _config(metadata, architecture, tensors)
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
        further=_further(metadata, architecture),
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


def _further(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Every key that the config was not made of, in GGUF's own spelling; what it means is for the preflight to judge."""
    read = {f"{architecture}.{key}" for key in (*KEYS, *ROPE_KEYS)}
    return {key: _plain(value) for key, value in metadata.items() if key not in read and not key.startswith(BOOKKEEPING)}


def _config(metadata: Mapping[str, Any], architecture: str, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, name in KEYS.items():
        value = _plain(metadata.get(f"{architecture}.{key}"))
        if value is not None and not (value == 0 and name in _ZERO_IS_NONE):
            config[name] = value
    for key, name in TOKEN_IDS.items():
        if isinstance(metadata.get(f"tokenizer.ggml.{key}"), int):
            config[name] = metadata[f"tokenizer.ggml.{key}"]
    if "num_attention_heads" in config:
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
    embedding = embedding_name(tensors)
    if embedding is not None and len(tensors[embedding].shape) == 2:
        config.setdefault("vocab_size", tensors[embedding].shape[0])
    return config | _rope(metadata, architecture, config)


def _rope(metadata: Mapping[str, Any], architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE on part of a head, and scalings: both change the mathematics and must be seen by the preflight."""
    found: dict[str, Any] = {}
    width = metadata.get(f"{architecture}.rope.dimension_count")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(width, int) and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        head_dim = config.get("head_dim", hidden // heads)
        if isinstance(head_dim, int) and head_dim > 0 and width != head_dim:
            found["partial_rotary_factor"] = width / head_dim
    scaling = _rope_scaling(metadata, architecture)
    if scaling is not None:
        found["rope_scaling"] = scaling
    return found


def _rope_scaling(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any] | None:
    """The scaling as Hugging Face spells it.

    llama.cpp takes a factor without a type as linear, reads the older `scale_linear` where there is no factor, and a
    factor of 0 as none.
    """
    kind = metadata.get(f"{architecture}.rope.scaling.type", "linear")
    factor = _plain(metadata.get(f"{architecture}.rope.scaling.factor", metadata.get(f"{architecture}.rope.scale_linear")))
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return None
    return {"rope_type": kind, **({} if factor is None else {"factor": factor})}


def _plain(value: Any) -> Any:
    """One number per model: a per-layer array counts when all layers agree, else it stays a list for the family to judge."""
    if isinstance(value, list):
        value = value[0] if value and all(item == value[0] for item in value) else value
    return shortest_f32(value) if isinstance(value, float) else value


class GgufReader:
    """An open GGUF file; plain tensors are views of the memory map, quantised ones arrive as F32. Make it with `open`."""

    def __init__(self, path: Path, data: memoryview, index: GgufIndex) -> None:
        self.metadata = index.metadata
        self.header = header_from_gguf(str(path), index.metadata, dict(sorted(index.tensors.items())))
        self._data = data
        self._places = index.places

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file; nothing but its front is read.

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

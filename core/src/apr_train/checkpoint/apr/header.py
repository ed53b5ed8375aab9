"""The canonical header of an `.apr` file: its metadata under Hugging Face's key names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_train.checkpoint.apr.keys import ALIASES, ENCODER_EPS, HF_NAMES, PROVENANCE, TYPED
from apr_train.checkpoint.dtypes import shortest_f32
from apr_train.checkpoint.header import Header, TensorInfo, kind_of_tensors
from apr_train.checkpoint.rope_rows import apr_rope_rows
from apr_train.checkpoint.tie import tie_from_index
from apr_train.checkpoint.tokenizer_metadata import spec_beside, spec_from_apr


def header_from_apr(path: str, raw_metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Header:
    """The canonical header of an `.apr` file.

    `raw_metadata` is the parsed JSON (last one of duplicate keys won). The normalisation epsilon has one typed key,
    `rms_norm_eps`: `config` has it under that name for a decoder, as `layer_norm_eps` for an encoder (the tensor names
    tell them apart), and under both when the names show neither.

    Raises:
        FormatError: when the metadata is malformed (a tokenizer that is no list of strings, say).
    """
    metadata = {key: value for key, value in raw_metadata.items() if value is not None}
    config = _canonical_config(metadata, tensors)
    architecture = _architecture(metadata)
    return Header(
        path=path,
        format="apr",
        hf_class=_text(metadata.get("hf_architecture")),
        architecture=architecture,
        config=config,
        tensors=tensors,
        names="hf",
        rope_rows=apr_rope_rows(metadata, architecture),
        tie=tie_from_index(config, tensors),
        tokenizer=spec_from_apr(path, metadata) or spec_beside(Path(path)),
        provenance={key: metadata[key] for key in PROVENANCE if key in metadata},
    )


def _canonical_config(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    config = {name: value for name, value in metadata.items() if name not in TYPED and name not in ALIASES and "." not in name}
    for name, hf in HF_NAMES.items():
        spelled = next((spelling for spelling in (name, *TYPED[name].aliases) if spelling in metadata), None)
        if spelled is not None:
            value = metadata[spelled]
            config[hf] = shortest_f32(value) if TYPED[name].type == "float" and isinstance(value, float) else value
    if "rms_norm_eps" in config and kind_of_tensors(tensors) != "decoder":
        config[ENCODER_EPS] = config["rms_norm_eps"]
        if kind_of_tensors(tensors) == "encoder":
            del config["rms_norm_eps"]
    return config


def _architecture(metadata: Mapping[str, Any]) -> str | None:
    value = _text(metadata.get("architecture")) or _text(metadata.get("hf_model_type"))
    return value.lower() if value else None


def _text(value: Any) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value else None

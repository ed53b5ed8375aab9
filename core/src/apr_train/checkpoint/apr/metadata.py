"""The metadata section of an `.apr` file: read as any writer spells it, put under
Hugging Face's key names, written as the reference writer would, to the byte.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apr_train.checkpoint.apr.keys import ALIASES, ENCODER_EPS, HF_NAMES, KEYS, PROVENANCE, TYPED, Key
from apr_train.checkpoint.apr.layout import MAX_METADATA_SIZE
from apr_train.checkpoint.companions import from_apr
from apr_train.checkpoint.dtypes import shortest_f32
from apr_train.checkpoint.header import Header, TensorInfo, kind_of_tensors
from apr_train.checkpoint.rope_rows import apr_rope_rows
from apr_train.checkpoint.tie import tie_from_index
from apr_train.checkpoint.tokenizer_metadata import spec_beside, spec_from_apr
from apr_train.errors import FormatError

MAX_F32 = (2 - 2**-23) * 2.0**127
_EXPONENT = re.compile(r"e\+?(-?)0*")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_encode_string = json.encoder.JSONEncoder(ensure_ascii=False).encode


def parse_metadata(raw: bytes, path: object) -> dict[str, Any]:
    """The metadata object as it stands, without the keys that are null; of a key that is there twice the last wins.

    Raises:
        FormatError: not UTF-8, not JSON, not an object, nested too deep, or a number that no float can hold.
    """
    try:
        found = json.loads(raw.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the metadata is not valid JSON ({error})", path=path, field="metadata") from error
    if not isinstance(found, dict):
        raise FormatError(
            "the metadata is not an object", path=path, field="metadata", expected="{…}", found=type(found).__name__
        )
    if _ESCAPED_SURROGATE.search(raw) and _LONE_SURROGATE.search(_encode_string(found)):
        raise FormatError("the metadata holds half a surrogate pair", path=path, field="metadata", expected="valid Unicode")
    return {key: value for key, value in found.items() if value is not None}


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is out of range")
    return value


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
    companions, tokenizer = from_apr(path, metadata, spec_from_apr(path, metadata))
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
        tokenizer=tokenizer or spec_beside(Path(path)),
        companions=companions,
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


def _canonical(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Typed keys instead of their aliases (both spellings in one file make aprender drop all metadata); no nulls."""
    found = {name: value for name, value in metadata.items() if value is not None}
    for key in KEYS:
        values = [found.pop(alias) for alias in key.aliases if alias in found]
        if values:
            found.setdefault(key.name, values[0])
        if key.default is not None:
            found.setdefault(key.name, key.default)
    return found


def encode_metadata(metadata: Mapping[str, Any], path: object) -> bytes:
    """The bytes that the reference writer produces for this metadata (custom keys sorted).

    Raises:
        FormatError: a typed key with a value of another type, a value that JSON does not have, or more than 16 MiB.
    """
    found = _canonical(metadata)
    typed = [(key.name, _typed(key, found.get(key.name), path)) for key in KEYS if key.name in found or key.null_when_unset]
    custom = [(name, found[name]) for name in sorted(found.keys() - TYPED.keys())]
    try:
        text = "{" + ",".join(f"{_encode_string(name)}:{spell(value)}" for name, value in typed + custom) + "}"
        raw = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"the metadata cannot be written as JSON ({error})", path=path, field="metadata") from error
    if len(raw) > MAX_METADATA_SIZE:
        problem = "the metadata is too large"
        raise FormatError(
            problem, path=path, field="metadata", expected=f"at most {MAX_METADATA_SIZE} bytes", found=f"{len(raw)} bytes"
        )
    return raw


def _typed(key: Key, value: Any, path: object) -> Any:
    """The value as it is written. One that the key's type cannot hold is refused: over it the reference reader drops all."""
    if value is not None and not _fits(key, value):
        raise FormatError("a metadata value of the wrong type", path=path, field=key.name, found=repr(value)[:80])
    return shortest_f32(value) if key.type == "float" and value is not None else value


def _fits(key: Key, value: Any) -> bool:
    if key.type == "text":
        return isinstance(value, str)
    if key.type == "table":
        return isinstance(value, Mapping)
    if isinstance(value, bool):
        return False
    if key.type == "float":
        return isinstance(value, int | float) and abs(value) <= MAX_F32
    return isinstance(value, int) and 0 <= value < 1 << 64


def spell(value: Any) -> str:
    """One JSON value, compact: shortest floats, unpadded exponents, raw UTF-8.

    Raises:
        TypeError: a value that JSON does not have.
        ValueError: a float that is not finite.
    """
    if isinstance(value, float):
        return spell_float(value)
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return _encode_string(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(_pairs(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(spell(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no JSON spelling")


def _pairs(value: Mapping[Any, Any]) -> Iterator[str]:
    for key, item in value.items():
        if not isinstance(key, str):
            raise TypeError(f"the key {key!r} is not a string")
        yield f"{_encode_string(key)}:{spell(item)}"


def spell_float(value: float) -> str:
    """Python's shortest decimal with the exponent as the reference writer has it: `1e-6` rather than `1e-06`."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return _EXPONENT.sub(r"e\1", repr(value))

"""The metadata section: read whatever writers have spelled, write exactly what the reference writer would."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from apr_train.checkpoint.apr.header import ALIASES
from apr_train.checkpoint.apr.layout import MAX_METADATA_SIZE
from apr_train.checkpoint.numbers import shortest_f32
from apr_train.errors import FormatError

STRING_KEYS = {
    "model_type",
    "name",
    "description",
    "author",
    "license",
    "data_source",
    "data_license",
    "version",
    "source",
    "original_format",
    "created_at",
    "chat_template",
    "chat_format",
    "architecture",
    "hf_architecture",
    "hf_model_type",
}
FLOAT_KEYS = {"rope_theta", "rms_norm_eps"}
OBJECT_KEYS = {"quantization", "sharding", "special_tokens"}
MAX_F32 = (2 - 2**-23) * 2.0**127
NULL_WHEN_UNSET = {"license", "data_source", "data_license"}
"""Provenance must never be silently absent."""
DEFAULTS: dict[str, Any] = {"model_type": "", "total_size": 0, "param_count": 0}

TYPED_KEYS = (
    "model_type",
    "name",
    "description",
    "author",
    "license",
    "data_source",
    "data_license",
    "version",
    "source",
    "original_format",
    "created_at",
    "total_size",
    "param_count",
    "quantization",
    "sharding",
    "chat_template",
    "chat_format",
    "special_tokens",
    "architecture",
    "hf_architecture",
    "hf_model_type",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "vocab_size",
    "intermediate_size",
    "max_position_embeddings",
    "rope_theta",
    "rope_type",
    "rms_norm_eps",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
"""In the order in which the reference writer emits them; every other key is custom and comes after."""

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


def canonical_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Typed keys instead of their aliases (both spellings in one file make aprender drop all metadata); no nulls."""
    found = {key: value for key, value in metadata.items() if value is not None}
    for typed, aliases in ALIASES.items():
        values = [found.pop(alias) for alias in aliases if alias in found]
        if values:
            found.setdefault(typed, values[0])
    return found


def encode_metadata(metadata: Mapping[str, Any], path: object) -> bytes:
    """The bytes that the reference writer produces for this metadata (custom keys sorted).

    Raises:
        FormatError: a typed key with a value of another type, a value that JSON does not have, or more than 16 MiB.
    """
    found = DEFAULTS | canonical_keys(metadata)
    typed = [(key, _typed(key, found.get(key), path)) for key in TYPED_KEYS if key in found or key in NULL_WHEN_UNSET]
    custom = [(key, found[key]) for key in sorted(set(found) - set(TYPED_KEYS))]
    try:
        text = "{" + ",".join(f"{_encode_string(key)}:{spell(value)}" for key, value in typed + custom) + "}"
        raw = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"the metadata cannot be written as JSON ({error})", path=path, field="metadata") from error
    if len(raw) > MAX_METADATA_SIZE:
        problem = "the metadata is too large"
        raise FormatError(
            problem, path=path, field="metadata", expected=f"at most {MAX_METADATA_SIZE} bytes", found=f"{len(raw)} bytes"
        )
    return raw


def _typed(key: str, value: Any, path: object) -> Any:
    """The value if the reference reader's type can hold it: it drops all metadata over one that it cannot."""
    if value is None:
        return None
    if key in STRING_KEYS:
        fits = isinstance(value, str)
    elif key in OBJECT_KEYS:
        fits = isinstance(value, Mapping)
    elif key in FLOAT_KEYS:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and abs(value) <= MAX_F32
        value = shortest_f32(value) if fits else value
    else:
        fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64
    if not fits:
        raise FormatError("a metadata value of the wrong type", path=path, field=key, found=repr(value)[:80])
    return value


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

"""The metadata section of an `.apr` file: read as any writer spells it, put under
Hugging Face's key names, written as the reference writer would, to the byte.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from apr_train import rules
from apr_train.checkpoint.apr.config_beside import config_beside
from apr_train.checkpoint.apr.keys import ALIASES, BOOLEANS, ENCODER_EPS, HF_NAMES, KEPT, KEYS, PROVENANCE, TYPED, Key
from apr_train.checkpoint.apr.layout import MAX_METADATA_SIZE
from apr_train.checkpoint.apr.tensors import model_tensors
from apr_train.checkpoint.companions import KEY, from_apr
from apr_train.checkpoint.dtypes import shortest_f32
from apr_train.checkpoint.files import MAX_DEPTH, json_value
from apr_train.checkpoint.gguf_keys import WINDOW_KEYS, config_of_keys, keys_of_config, rope_of_keys
from apr_train.checkpoint.header import DIMENSIONS, Header, TensorInfo, kind_of_tensors
from apr_train.checkpoint.huggingface import one_spelling
from apr_train.checkpoint.implied import implied_values
from apr_train.checkpoint.rope_rows import apr_rope_rows
from apr_train.checkpoint.tie import tie_from_index
from apr_train.checkpoint.tokenizer_metadata import spec_beside, spec_from_apr
from apr_train.errors import Finding, FormatError

OUR_PREFIXES = ("tokenizer.", "apr_train.")
"""Custom keys of the tokenizer, and our own."""
MAX_F32 = (2 - 2**-23) * 2.0**127
_encode_string = json.encoder.JSONEncoder(ensure_ascii=False).encode


def parse_metadata(raw: bytes, path: object) -> dict[str, Any]:
    """The metadata object as it stands, without the keys that are null; of a key that is there twice the last wins.

    Raises:
        FormatError: not UTF-8, not JSON, not an object, nested too deep, or a number that no float can hold.
    """
    try:
        text = raw.decode()
    except ValueError as error:
        raise FormatError(f"the metadata is not UTF-8: {error}", path=path, field="metadata") from error
    found = json_value(text, path, field="metadata")
    if not isinstance(found, dict):
        raise FormatError(
            "the metadata is not an object", path=path, field="metadata", expected="{…}", found=type(found).__name__
        )
    return {key: value for key, value in found.items() if value is not None}


def header_from_apr(path: str, raw_metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Header:
    """The canonical header of an `.apr` file.

    `raw_metadata` is the parsed JSON (last one of duplicate keys won). The normalisation epsilon has one typed key,
    `rms_norm_eps`: `config` has it under that name for a decoder, as `layer_norm_eps` for an encoder (the tensor names
    tell them apart), and under both when the names show neither.

    Raises:
        FormatError: when the metadata is malformed (a tokenizer that is no list of strings, say).
    """
    metadata = {key: value for key, value in raw_metadata.items() if value is not None}
    model = model_tensors(path, metadata, tensors)
    hf_class, architecture = _identity(metadata)
    config, notes = _canonical_config(path, metadata, model.tensors), model.notes
    as_gguf = config_of_keys(metadata, architecture)
    for name in ("sliding_window", "sliding_window_pattern", "layer_types"):
        as_gguf.pop(name, None)  # a GGUF has no switch for windows: judged as they stand, among what is further
    as_gguf |= rope_of_keys(metadata, architecture, {**as_gguf, **config})
    notes = (*notes, *_contradictions(path, metadata, config, as_gguf))
    config = {**as_gguf, **config}
    if not any(key in config for key in DIMENSIONS):
        beside = config_beside(Path(path), config, hf_class)
        config, notes = {**beside.config, **config}, (*notes, *beside.notes)
        hf_class, architecture = hf_class or beside.hf_class, architecture or beside.architecture
    values, implied = implied_values(path, config, model.tensors)
    companions, own_tokenizer = from_apr(path, metadata, spec_from_apr(path, metadata))
    tokenizer = own_tokenizer or spec_beside(Path(path))
    return Header(
        path=path,
        format="apr",
        hf_class=hf_class,
        architecture=architecture,
        config={**config, **values},
        tensors=model.tensors,
        names="hf",
        rope_rows=apr_rope_rows(metadata, architecture),
        tie=tie_from_index(config, model.tensors, model.tied_head),
        tokenizer=tokenizer,
        companions=companions,
        further=_further(metadata, architecture),
        provenance={key: metadata[key] for key in PROVENANCE if key in metadata},
        extra=_extra(metadata, with_tokenizer=tokenizer is None),
        findings=(*notes, *implied),
    )


def _further(metadata: Mapping[str, Any], architecture: str | None) -> dict[str, Any]:
    """Keys as a GGUF spells them that the config was not made of, and the kind of RoPE."""
    read = keys_of_config(architecture) - {f"{architecture}.{key}" for key in WINDOW_KEYS}
    names = {key for key in metadata if key == "rope_type" or ("." in key and not key.startswith(OUR_PREFIXES))}
    return {key: metadata[key] for key in sorted(names - read)}


def _contradictions(
    path: str, metadata: Mapping[str, Any], config: Mapping[str, Any], as_gguf: Mapping[str, Any]
) -> tuple[Finding, ...]:
    """An error for each key that the file has under two names with two values."""
    pairs = [
        (name, alias, metadata[alias], metadata[name])
        for name, key in TYPED.items()
        for alias in key.aliases
        if name in metadata and alias in metadata
    ]
    pairs += [(name, f"{name}, as a GGUF says it", value, config[name]) for name, value in as_gguf.items() if name in config]
    return tuple(
        Finding(
            rule=rules.INIT_005,
            subject=path,
            field=name,
            problem=f"the metadata has two values, the other as {alias}",
            expected=f"{value!r:.80}",
            found=f"{other!r:.80}",
            hint="Re-import the file from its source.",
        )
        for name, alias, other, value in pairs
        if other != value
    )


def _extra(metadata: Mapping[str, Any], *, with_tokenizer: bool) -> dict[str, Any]:
    """What is neither config nor provenance; a tokenizer's keys go with the tokenizer, if there is one."""
    return {
        key: value
        for key, value in metadata.items()
        if key in KEPT or ("." in key and key != KEY and (with_tokenizer or not key.startswith("tokenizer.")))
    }


def _canonical_config(path: str, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    elsewhere = {*TYPED, *ALIASES, *KEPT}
    config = {name: value for name, value in metadata.items() if name not in elsewhere and "." not in name}
    for name, hf in HF_NAMES.items():
        spelled = next((spelling for spelling in (name, *TYPED[name].aliases) if spelling in metadata), None)
        if spelled is not None:
            value = metadata[spelled]
            config[hf] = shortest_f32(value) if TYPED[name].type == "float" and isinstance(value, float) else value
    config = one_spelling(config, path)
    if "rms_norm_eps" in config and kind_of_tensors(tensors) != "decoder":
        config[ENCODER_EPS] = config["rms_norm_eps"]
        if kind_of_tensors(tensors) == "encoder":
            del config["rms_norm_eps"]
    return config


_CLASS = re.compile(r"[A-Z]\w*(For[A-Z]\w*|Model)")
"""A Hugging Face class, as aprender's trainers write it under `architecture`."""


def _identity(metadata: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(class, architecture) as far as the metadata names them."""
    hf_class, named = _text(metadata.get("hf_architecture")), _text(metadata.get("architecture"))
    if named is not None and _CLASS.fullmatch(named):
        hf_class, named = hf_class or named, None
    architecture = named or _text(metadata.get("hf_model_type"))
    return hf_class, architecture.lower() if architecture else None


def _text(value: Any) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value else None


def encode_metadata(metadata: Mapping[str, Any], path: object) -> bytes:
    """The bytes that the reference writer produces for this metadata (custom keys, and keys of nested objects, sorted).

    Raises:
        FormatError: what the reference readers refuse, or drop all metadata for: a typed key with a value of another type,
            two spellings of one key with different values, a table that lacks a field, too deep nesting, a value that
            JSON or a 64-bit float does not have, more than 16 MiB.
    """
    found = _canonical(metadata, path)
    typed = [(key.name, _typed(key, found.get(key.name), path)) for key in KEYS if key.name in found or key.null_when_unset]
    custom = [(name, found[name]) for name in sorted(found.keys() - TYPED.keys())]
    for name, value in custom:
        if name in BOOLEANS and not isinstance(value, bool):
            raise _unwritable("readers of aprender's files take this key for a boolean", path, name, "true or false", value)
    raw = b"{" + b",".join(_member(name, value, path) for name, value in typed + custom) + b"}"
    if len(raw) > MAX_METADATA_SIZE:
        problem = "the metadata is too large"
        raise FormatError(
            problem, path=path, field="metadata", expected=f"at most {MAX_METADATA_SIZE} bytes", found=f"{len(raw)} bytes"
        )
    return raw


def _canonical(metadata: Mapping[str, Any], path: object) -> dict[str, Any]:
    """Typed keys instead of their aliases (both spellings in one file make aprender drop all metadata); no nulls."""
    found = {name: value for name, value in metadata.items() if value is not None}
    for key in KEYS:
        spelled = [alias for alias in key.aliases if alias in found]
        for alias in spelled:
            value = found.pop(alias)
            if found.setdefault(key.name, value) != value:
                raise _unwritable(f"{alias} is another spelling of {key.name}", path, alias, found[key.name], value)
        if key.default is not None:
            found.setdefault(key.name, key.default)
    return found


def _unwritable(problem: str, path: object, field: str, expected: object, found: Any) -> FormatError:
    """A value over which the reference readers would drop all metadata of the file, or refuse it."""
    return FormatError(
        problem,
        path=path,
        field=field,
        rule=rules.INIT_005,
        expected=expected,
        found=_shown(found),
        hint=f"aprender would drop all metadata of the file over it: correct {field} in the source, or take it out.",
    )


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # an integer of more digits than Python prints
        return "an integer of thousands of digits"


def _member(name: str, value: Any, path: object) -> bytes:
    is_f32 = name in TYPED and TYPED[name].type == "float" and value is not None
    try:
        return f"{_encode_string(name)}:{spell_f32(value) if is_f32 else spell(value, MAX_DEPTH - 1)}".encode()
    except (TypeError, ValueError) as error:
        raise _unwritable(f"the metadata cannot be written as JSON ({error})", path, name, "a JSON value", value) from error


def _typed(key: Key, value: Any, path: object) -> Any:
    """The value, which the key's type can hold."""
    if value is None:
        return value
    if not _fits(key.type, value, key.bits):
        raise _unwritable("a metadata value of the wrong type", path, key.name, _WORDS[key.type].format(bits=key.bits), value)
    for part in key.fields:
        item = value.get(part.name)
        if not (part.optional and item is None) and not _fits(part.type, item, part.bits):
            expected = _WORDS[part.type].format(bits=part.bits)
            raise _unwritable(
                "a metadata table without a field that it must have", path, f"{key.name}.{part.name}", expected, item
            )
    for name, item in value.items() if key.strings else ():
        if not isinstance(item, str):
            raise _unwritable("a metadata value of the wrong type", path, f"{key.name}.{name}", "text", item)
    return value


_WORDS = {
    "text": "text",
    "table": "an object",
    "flag": "true or false",
    "float": "a number that a 32-bit float can hold",
    "count": "an integer from 0 to 2^{bits} - 1",
}


def _fits(kind: str, value: Any, bits: int) -> bool:
    if kind in ("text", "table", "flag"):
        return isinstance(value, {"text": str, "table": Mapping, "flag": bool}[kind])
    if isinstance(value, bool):
        return False
    if kind == "float":
        return isinstance(value, int | float) and abs(value) <= MAX_F32
    return isinstance(value, int) and 0 <= value < 1 << bits


def spell(value: Any, depth: int) -> str:
    """One JSON value, compact: shortest floats, raw UTF-8, sorted keys, at most `depth` levels.

    Raises:
        TypeError: a value that JSON does not have.
        ValueError: a number that no 64-bit float can hold, or nesting that is too deep.
    """
    if isinstance(value, float):
        return spell_f64(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return _spell_int(value)
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return _encode_string(value)
    if not isinstance(value, Mapping | list | tuple):
        raise TypeError(f"{type(value).__name__} has no JSON spelling")
    if depth == 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return "{" + ",".join(_pairs(value, depth - 1)) + "}"
    return "[" + ",".join(spell(item, depth - 1) for item in value) + "]"


def _pairs(value: Mapping[Any, Any], depth: int) -> Iterator[str]:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"the key {key!r} is not a string")
    for key in sorted(value):
        yield f"{_encode_string(key)}:{spell(value[key], depth)}"


def _spell_int(value: int) -> str:
    if abs(value) > sys.float_info.max:
        raise ValueError("a number beyond 64-bit floats")
    return str(value)


def spell_f64(value: float) -> str:
    """A float of a custom key: the shortest digits that read back to the same 64 bits, as the reference writer puts them."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return _spell_digits(repr(value), above=-5, most=16)


def spell_f32(value: float) -> str:
    """A float of a typed key: the shortest digits that read back to the same 32 bits, as the reference writer puts them."""
    return _spell_digits(np.format_float_scientific(np.float32(value), unique=True), above=-6, most=13)


def _spell_digits(shortest: str, *, above: int, most: int) -> str:
    """Plain decimal notation while the decimal point is within `above` < position <= `most`, else an exponent.

    Args:
        shortest: any spelling with the digits that are wanted.
        above: the point's position among the digits, below which there is an exponent.
        most: the position above which there is one.
    """
    sign, numerals, exponent = Decimal(shortest).normalize().as_tuple()
    digits, minus = "".join(map(str, numerals)), "-" if sign else ""
    if digits == "0":
        return f"{minus}0.0"
    point = len(digits) + int(exponent)
    if above < point <= 0:
        return f"{minus}0.{'0' * -point}{digits}"
    if 0 < point <= most:
        return f"{minus}{digits[:point].ljust(point, '0')}.{digits[point:] or '0'}"
    fraction = f".{digits[1:]}" if digits[1:] else ""
    return f"{minus}{digits[0]}{fraction}e{point - 1:+d}"

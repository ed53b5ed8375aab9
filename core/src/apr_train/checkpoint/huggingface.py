"""Hugging Face's files beside the weights: config.json as the canonical header, the tokenizer's files, the README's licence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_train.checkpoint.files import MAX_YAML_BYTES, parse_json, parse_yaml
from apr_train.checkpoint.header import SPECIAL_TOKENS, Header, TensorInfo, TokenizerSpec
from apr_train.checkpoint.tie import tie_from_index
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.errors import FormatError

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)


def tokenizer_of(folder: Path, config: Mapping[str, Any]) -> TokenizerSpec | None:
    """The folder's tokenizer.json with its special ids and chat template; None if there is no tokenizer.json.

    Raises:
        FormatError: when one of the files is not what it should be.
    """
    config = _with_generation(folder, config)
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = parse_json(path)
    settings = _optional(folder / "tokenizer_config.json")
    named = _optional(folder / "special_tokens_map.json") | settings
    return spec_from_json(
        content, str(path), special_ids=_special_ids(content, named, config), chat_template=_template(folder, settings)
    )


def _optional(path: Path) -> dict[str, Any]:
    return parse_json(path) if path.is_file() else {}


def _special_ids(content: Mapping[str, Any], named: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """By the tokenizer's own settings (tokens), else by config.json and generation_config.json (ids)."""
    ids = {}
    for name in SPECIAL_TOKENS:
        token = named.get(f"{name}_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        index = _id_of(content, token) if isinstance(token, str) else config.get(f"{name}_token_id")
        if isinstance(index, list) and index:
            index = index[0]
        if isinstance(index, int) and not isinstance(index, bool) and index >= 0:
            ids[name] = index
    return ids


def _id_of(content: Mapping[str, Any], token: str) -> int | None:
    for added in content.get("added_tokens") or ():
        if isinstance(added, Mapping) and added.get("content") == token:
            return added.get("id")
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    return vocabulary.get(token) if isinstance(vocabulary, Mapping) else None


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        return separate.read_text(encoding="utf-8", errors="replace")
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None


def readme_license(folder: Path) -> str | None:
    """The text under `license` in README.md's front matter; None where that is not to be had, whatever the reason."""
    path = folder / "README.md"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        front = _FRONT_MATTER.search(file.read(MAX_YAML_BYTES).decode("utf-8", "replace"))
    try:
        content = parse_yaml(front.group(1), path) if front else None
    except FormatError:
        return None
    value = content.get("license") if isinstance(content, dict) else None
    return value.strip() or None if isinstance(value, str) else None


NEUTRAL_ROPE = "default"
_LIFTED = ("rope_theta", "partial_rotary_factor")


def header_from_hf(
    path: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    tokenizer: TokenizerSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Header:
    """The canonical header of a safetensors file or folder; `config` is the parsed config.json, `{}` if there is none.

    Raises:
        FormatError: when config.json says two things about RoPE.
    """
    canonical = canonical_config(config, path)
    classes = config.get("architectures")
    model_type = config.get("model_type")
    return Header(
        path=path,
        format="safetensors",
        hf_class=classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else None,
        architecture=model_type.lower() if isinstance(model_type, str) else None,
        config=canonical,
        tensors=tensors,
        names="hf",
        rope_rows="split-half",
        tie=tie_from_index(canonical, tensors),
        tokenizer=tokenizer,
        provenance={"original_format": "safetensors", **(provenance or {})},
    )


def canonical_config(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Nulls dropped, `rope_parameters` taken apart: theta lifted, a scaling that is not `default` under `rope_scaling`."""
    plain = {key: value for key, value in config.items() if value is not None and key not in ("architectures", "model_type")}
    for key in ("rope_scaling", "rope_parameters"):  # one table under its older and its newer name
        parameters = plain.get(key)
        if isinstance(parameters, Mapping):
            del plain[key]
            plain |= _rope_parts(parameters, plain, path, key)
    return plain


def _rope_parts(parameters: Mapping[str, Any], plain: Mapping[str, Any], path: str, table: str) -> dict[str, Any]:
    if any(isinstance(value, Mapping) for value in parameters.values()):
        return {"rope_scaling": {"rope_type": "one RoPE per layer type", **parameters}}
    lifted = {key: parameters[key] for key in _LIFTED if parameters.get(key) is not None}
    for key, value in lifted.items():
        if plain.get(key, value) != value:
            raise FormatError(
                f"config.json has two values of {key}",
                path=path,
                field=f"{table}.{key}",
                expected=plain[key],
                found=value,
            )
    rest = {key: value for key, value in parameters.items() if key not in _LIFTED and value is not None}
    if rest.get("rope_type", rest.get("type", NEUTRAL_ROPE)) == NEUTRAL_ROPE:
        return lifted
    return {**lifted, "rope_scaling": rest}


def _with_generation(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json, and those of generation_config.json that it leaves open."""
    path = folder / "generation_config.json"
    generation = parse_json(path) if path.is_file() else {}
    return generation | {key: value for key, value in config.items() if value is not None}

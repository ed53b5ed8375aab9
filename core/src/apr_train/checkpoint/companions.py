"""The files beside a model's weights that say how it is used: which there are, what of them is kept, and where in `.apr`.

Nothing here changes the model's mathematics. What is kept goes through `.apr` and training as it came, and an export writes
it back: under the names of the files, in one custom key of the metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from apr_train.checkpoint.files import MAX_YAML_BYTES, open_regular, parse_json, parse_yaml, read_text
from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.errors import FormatError

KEY = "apr_train.files"
"""The metadata key of `.apr`: file name → what is kept of it."""
CONFIG = "config.json"
GENERATION = "generation_config.json"
README = "README.md"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENS_MAP = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
"""A folder of further templates, NAME.jinja."""
OF_TOKENIZER = frozenset({TOKENIZER_CONFIG, TOKENS_MAP, TEMPLATES})
"""What belongs to the tokenizer and goes when another one is taken; the rest belongs to the model."""
_BESIDE = (
    *(CONFIG, GENERATION, README, TOKENIZER, TOKENIZER_CONFIG, TOKENS_MAP, TEMPLATE),
    *("model.safetensors.index.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"),
)
_BOOKKEEPING = frozenset({"use_cache", "transformers_version", "torch_dtype"})
_README_KEYS = ("license_name", "license_link")
MAX_TEMPLATE_BYTES = 1 << 20
"""Bound on a chat template; the longest in use have 20 kB."""
MAX_SIDE_BYTES = 1 << 24
"""Bound on a JSON file beside the weights; a tokenizer_config.json that lists a thousand added tokens has a megabyte."""


def files_beside(folder: Path, weights: Iterable[Path] = ()) -> tuple[Path, ...]:
    """The weights, and every file in their folder that is a part of a model by its name."""
    templates = sorted((folder / TEMPLATES).glob("*.jinja"))
    return (*weights, *(path for name in _BESIDE if (path := folder / name).is_file()), *templates)


def files_of_folder(folder: Path, weights: Iterable[Path]) -> tuple[Path, ...]:
    """The files of a folder that is a model: all but `.apr` files, which may be made of it there."""
    others = [item for item in sorted(folder.iterdir()) if item.is_file() and item.suffix != ".apr"]
    return tuple(dict.fromkeys((*weights, *others, *files_beside(folder))))


def companions_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the model's files; `config` is the parsed config.json.

    Raises:
        FormatError: when one of them is not what it should be.
    """
    generation = folder / GENERATION
    found = {
        CONFIG: config_rest(config),
        GENERATION: parse_json(generation, most=MAX_SIDE_BYTES) if generation.is_file() else {},
        README: {key: value for key, value in readme_facts(folder).items() if key in _README_KEYS},
    }
    return {name: content for name, content in found.items() if content}


def config_rest(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json that the canonical config, or that of an `.apr`, does not carry.

    An explicit null is one: where the key is absent, transformers takes its own default.
    """
    return {key: value for key, value in config.items() if value is None or key in _BOOKKEEPING or "." in key}


def tokenizer_companions(folder: Path) -> dict[str, Any]:
    """What is kept of the tokenizer's files beside tokenizer.json.

    Raises:
        FormatError: when one of them is not what it should be.
    """
    names = (name for name in (TOKENIZER_CONFIG, TOKENS_MAP) if (folder / name).is_file())
    found = {name: parse_json(folder / name, most=MAX_SIDE_BYTES) for name in names}
    templates = {path.stem: _text(path) for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    return found | ({TEMPLATES: templates} if templates else {})


def _text(path: Path) -> str:
    return read_text(path, most=MAX_TEMPLATE_BYTES)


def template_of(folder: Path, companions: Mapping[str, Any]) -> str | None:
    """The chat template: chat_template.jinja, else that of tokenizer_config.json; of a named list the one called default."""
    if (folder / TEMPLATE).is_file():
        return _text(folder / TEMPLATE)
    return template_in(companions.get(TOKENIZER_CONFIG, {}))


def template_in(settings: Mapping[str, Any]) -> str | None:
    """The template that a tokenizer_config.json holds itself."""
    template = settings.get("chat_template")
    for item in template if isinstance(template, list) else ():
        if isinstance(item, Mapping) and item.get("name") == "default":
            template = item.get("template")
    return template if isinstance(template, str) else None


def readme_facts(folder: Path) -> dict[str, str]:
    """License, author and what belongs to them in README.md's front matter; nothing where that is not to be had."""
    values = _front_matter(folder)
    named = {key: values.get(key) for key in ("license", "author", *_README_KEYS)}
    return {key: value.strip() for key, value in named.items() if isinstance(value, str) and value.strip()}


def reference_beside(folder: Path) -> dict[str, Any]:
    """The reference loss in README.md's front matter, as a key of metadata; plain values are kept, none is judged."""
    values = _front_matter(folder)
    if REFERENCE not in values:
        return {}
    held = values[REFERENCE] if isinstance(values[REFERENCE], dict) else {}
    plain = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, str | int | float)}
    return {REFERENCE: plain}


def _front_matter(folder: Path) -> dict[Any, Any]:
    path = folder / README
    if not path.is_file():
        return {}
    try:
        with open_regular(path) as file:
            front = _front(file.read(MAX_YAML_BYTES).decode("utf-8", "replace"))
        content = None if front is None else parse_yaml(front, path)
    except (FormatError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def _front(text: str) -> str | None:
    """What stands between a first line and a later one that are three dashes; blanks may follow them."""
    lines = text.split("\n")
    ends = (number for number, line in enumerate(lines) if number and line.rstrip() == "---")
    end = next(ends, None) if lines[0].rstrip() == "---" else None
    return None if end is None else "\n".join(lines[1:end])


def to_apr(header: Header | None, tokenizer: TokenizerSpec | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata key that holds what is kept, or nothing; `config` is what else of config.json has no key of its own."""
    kept = {**(header.companions if header is not None else {}), **(tokenizer.companions if tokenizer is not None else {})}
    if config:
        kept[CONFIG] = {**kept.get(CONFIG, {}), **config}
    return {KEY: kept} if kept else {}


def from_apr(
    path: str, metadata: Mapping[str, Any], tokenizer: TokenizerSpec | None
) -> tuple[dict[str, Any], TokenizerSpec | None]:
    """What is kept of the model's files, and the tokenizer of the metadata with what is kept of its own.

    Raises:
        FormatError: when the key does not hold objects.
    """
    kept = metadata.get(KEY, {})
    if not isinstance(kept, Mapping) or not all(isinstance(content, Mapping) for content in kept.values()):
        raise FormatError("not an object of objects", path=path, field=KEY, expected="file name → {…}", found=repr(kept)[:60])
    of_tokenizer = {name: content for name, content in kept.items() if name in OF_TOKENIZER}
    if tokenizer is not None and of_tokenizer:
        tokenizer = attrs.evolve(tokenizer, companions=of_tokenizer)
    return {name: content for name, content in kept.items() if name not in OF_TOKENIZER}, tokenizer

"""Plain data as block YAML, for a card's front matter; strings are always quoted, so that none is read as something else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN_KEY = re.compile(r"(?!(?:true|false|null|yes|no|on|off)$)[a-z][a-z_-]+")
_NOT_PRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")


def yaml_text(data: Mapping[str, Any]) -> str:
    """A mapping of strings, numbers, lists and mappings; ends with a newline."""
    return "".join(f"{line}\n" for line in _mapping(data))


def _mapping(data: Mapping[str, Any]) -> Iterator[str]:
    for key, value in data.items():
        name = key if _PLAIN_KEY.fullmatch(key) else _scalar(key)
        if isinstance(value, Mapping) and value:
            yield f"{name}:"
            yield from (f"  {line}" for line in _mapping(value))
        elif isinstance(value, list | tuple) and value:
            yield f"{name}:"
            for item in value:
                yield from _item(item)
        else:
            yield f"{name}: {_scalar(value)}"


def _item(item: Any) -> Iterator[str]:
    lines = _mapping(item) if isinstance(item, Mapping) and item else iter([_scalar(item)])
    for number, line in enumerate(lines):
        yield f"{'  ' if number else '- '}{line}"


def _scalar(value: Any) -> str:
    """JSON's spelling is YAML's, but for the control characters that JSON leaves as they are."""
    return _NOT_PRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))

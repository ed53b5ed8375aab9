"""What decides the text of a corpus and its two sides."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import field, frozen

from apr_train.errors import ConfigError


def _inside_unit_interval(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        where = f"{type(instance).__name__}.{attribute.name}"
        raise ConfigError("not a fraction", where=where, expected="above 0 and below 1", found=repr(value))


def _paths(value: Any) -> tuple[str, ...]:
    items = () if isinstance(value, str) else tuple(value)
    if isinstance(value, str) or not all(isinstance(item, str) and item for item in items):
        raise ConfigError("not a list of paths", where="CorpusSettings.data", expected="paths or globs", found=repr(value))
    return items


@frozen(kw_only=True)
class CorpusSettings:
    """Where the text comes from, and how much of it is held out."""

    data: tuple[str, ...] = field(default=(), converter=_paths)
    """Files, folders, globs, and JSONL files; empty: the source of Python's standard library."""
    validation_fraction: float = field(default=0.05, validator=_inside_unit_interval)
    """Share of the documents (by a fixed hash of their content) that is held out; of a single document, its tail."""

"""What the user can say about the corpus."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import field, frozen

from apr_train.errors import ConfigError
from apr_train.validators import boolean


def _inside_unit_interval(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        where = f"{type(instance).__name__}.{attribute.name}"
        raise ConfigError("not a fraction", where=where, expected="above 0 and below 1", found=repr(value))


def _sources(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError("not a list of paths", where="DataSettings.data", expected="paths or globs", found=repr(value))
    return tuple(value)


@frozen(kw_only=True)
class DataSettings:
    """Where the text comes from and how it becomes rows."""

    data: tuple[str, ...] = field(default=(), converter=_sources)
    """Files, folders, globs, and JSONL files; empty: the source of Python's standard library."""
    validation_fraction: float = field(default=0.05, validator=_inside_unit_interval)
    """Share of the documents (by a fixed hash of their content) that is held out; of a single document, its tail."""
    document_mask: bool = field(default=False, validator=boolean)
    """Whether attention stays inside documents in rows that hold several."""
    mask_probability: float = field(default=0.15, validator=_inside_unit_interval)
    """Masked-LM: share of the ordinary tokens that become targets."""

"""Dicts to attrs objects, where unknown and missing keys are errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from apr_train.errors import ConfigError
from apr_train.suggest import did_you_mean


def build_strictly(cls: type[Any], values: Mapping[str, Any], *, where: str) -> Any:
    """Make an attrs object from a dict; unknown and missing keys are errors that name them.

    Raises:
        ConfigError: naming all unknown keys (with the closest known one) or all missing ones.
    """
    known = {item.name for item in attrs.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        hint = "; ".join(f"{key}: {did_you_mean(key, known)}" for key in unknown)
        raise ConfigError(f"unknown keys {', '.join(unknown)}", where=where, hint=hint)
    missing = [item.name for item in attrs.fields(cls) if item.default is attrs.NOTHING and item.name not in values]
    if missing:
        raise ConfigError(f"missing keys {', '.join(missing)}", where=where)
    return cls(**values)

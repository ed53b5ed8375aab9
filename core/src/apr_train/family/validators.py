"""attrs validators that give one clear message each."""

from __future__ import annotations

import sys
from typing import Any

import attrs

from apr_train.errors import ConfigError


def positive(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but a number above zero that a float can hold (booleans are not numbers here)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        problem = "not a positive number"
        raise ConfigError(
            problem, where=type(instance).__name__, field=attribute.name, expected="a number > 0", found=repr(value)
        )


def positive_int(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        problem = "not a positive integer"
        raise ConfigError(
            problem, where=type(instance).__name__, field=attribute.name, expected="an integer > 0", found=repr(value)
        )


def token_id(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but an integer of zero or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            "not a token id", where=type(instance).__name__, field=attribute.name, expected="an integer >= 0", found=repr(value)
        )


def boolean(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but true or false: a string "false" is true in Python."""
    if not isinstance(value, bool):
        raise ConfigError(
            "not a boolean", where=type(instance).__name__, field=attribute.name, expected="true or false", found=repr(value)
        )


def fraction(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything outside [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(
            "not a fraction", where=type(instance).__name__, field=attribute.name, expected="in [0, 1)", found=repr(value)
        )


def _refusal(problem: str, instance: object, attribute: attrs.Attribute[Any], expected: str, value: Any) -> ConfigError:
    return ConfigError(problem, where=type(instance).__name__, field=attribute.name, expected=expected, found=repr(value))

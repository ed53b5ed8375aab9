"""Validators of configs' fields, and attrs objects made from dicts in which every key must be known. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

from apr_train.errors import ConfigError
from apr_train.suggest import did_you_mean

A = TypeVar("A", bound=attrs.AttrsInstance)
Validator = Callable[[object, "attrs.Attribute[Any]", Any], None]


def build_strictly(cls: type[A], values: Mapping[str, Any], *, where: str) -> A:
    """Make an attrs object from a dict; unknown and missing keys are errors that name them.

    Raises:
        ConfigError: naming all unknown keys (with the closest known one) or all missing ones.
    """
    known = {item.name for item in attrs.fields(cls)}
    unknown = sorted(map(str, set(values) - known))
    if unknown:
        hint = "; ".join(f"{key}: {did_you_mean(key, known)}" for key in unknown)
        raise ConfigError(f"unknown keys {', '.join(unknown)}", where=where, hint=hint)
    missing = [item.name for item in attrs.fields(cls) if item.default is attrs.NOTHING and item.name not in values]
    if missing:
        raise ConfigError(f"missing keys {', '.join(missing)}", where=where)
    return cls(**values)


def positive(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but a number above zero that a float can hold (booleans are not numbers here)."""
    if not _is_positive(value):
        raise refusal("not a positive number", instance, attribute, "a number > 0", value)


def positives(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but a tuple of numbers above zero."""
    if not isinstance(value, tuple) or not value or not all(_is_positive(item) for item in value):
        raise refusal("not a list of positive numbers", instance, attribute, "numbers > 0", value)


LARGEST = 1 << 31
"""No size of a real model is near; a larger one is a corrupted number."""
MOST_LAYERS = 2_000
"""A name map has some lines for each layer: a corrupted number of layers must cost neither time nor memory."""


def positive_int(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but an integer above zero that a size can be."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise refusal("not a positive integer", instance, attribute, "an integer > 0", value)
    _check_largest(instance, attribute, value, LARGEST)


def layer_count(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but an integer above zero that a number of layers can be: the bound for everything that is made of it."""
    if isinstance(value, int):
        _check_largest(instance, attribute, value, MOST_LAYERS)
    positive_int(instance, attribute, value)


def _check_largest(instance: object, attribute: attrs.Attribute[Any], value: int, largest: int) -> None:
    if value > largest:
        raise refusal("too large", instance, attribute, f"at most {largest}", value)


def natural(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but an integer of zero or more: a count of what there may be none of, a token's id, a layer's number."""
    if not _is_natural(value):
        raise refusal("not an integer of zero or more", instance, attribute, "an integer >= 0", value)
    _check_largest(instance, attribute, value, LARGEST)


def naturals(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but a tuple, which may be empty, of integers of zero or more."""
    if not isinstance(value, tuple) or not all(_is_natural(item) for item in value):
        raise refusal("not a list of integers of zero or more", instance, attribute, "integers >= 0", value)


def number(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but a finite number (booleans are not numbers here)."""
    if not _is_number(value):
        raise refusal("not a finite number", instance, attribute, "a number", value)


def not_negative(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but a finite number of zero or more."""
    if not _is_number(value) or value < 0:
        raise refusal("not a number of zero or more", instance, attribute, "a number >= 0", value)


def text(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but text."""
    if not isinstance(value, str):
        raise refusal("not text", instance, attribute, "a name", value)


def texts(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but a tuple of texts."""
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise refusal("not a list of texts", instance, attribute, "names", value)


def boolean(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything but true or false: a string "false" is true in Python."""
    if not isinstance(value, bool):
        raise refusal("not a boolean", instance, attribute, "true or false", value)


def fraction(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything outside [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        raise refusal("not a fraction", instance, attribute, "in [0, 1)", value)


def share(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject anything outside (0, 1]."""
    if not _is_positive(value) or value > 1:
        raise refusal("not a share", instance, attribute, "in (0, 1]", value)


def one_of(*choices: str) -> Validator:
    """Make a validator that rejects anything but one of `choices`."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in choices:
            raise refusal("not implemented", instance, attribute, " or ".join(choices), value)

    return check


def refusal(problem: str, instance: object, attribute: attrs.Attribute[Any], expected: str, value: Any) -> ConfigError:
    """The error of a field whose value cannot be."""
    return ConfigError(problem, where=type(instance).__name__, field=attribute.name, expected=expected, found=repr(value))


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _is_natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0

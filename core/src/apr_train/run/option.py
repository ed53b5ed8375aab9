"""How a setting is declared and checked: its help, its limits, and what a resume may make of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from attrs import frozen

from apr_train.errors import ConfigError
from apr_train.run.other_names import meant_value
from apr_train.suggest import did_you_mean

MAY_CHANGE = "may change at a resume"
MAY_MOVE = "may lie elsewhere at a resume"
FIXED = "why it may not change at a resume"
DECIDES = "decides what a run computes"
USED_WITH = "has a meaning only beside"
ALONE = "the value that the option has without one"
PATH = "is a path"
TABLES = "is an array of tables"
MOST = 2**31 - 1
"""Of a number of things: the product of two of them has room in the 64 bits of TOML and of torch."""
IN_TABLE = "the array of tables that it is a key of"


@frozen
class Beside:
    """Another setting without which a setting means nothing."""

    name: str
    values: tuple[str, ...] = ()
    """The values of the other that give this one a meaning; (): any but none, false and 0."""

    def holds(self, value: Any) -> bool:
        """Whether a value of the other setting gives this one a meaning."""
        return value in self.values if self.values else value not in (None, False, 0, (), "0", "none")


def option(
    default: Any,
    text: str,
    *,
    kind: type,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    many: bool = False,
    or_one: bool = False,
    may_change: bool = False,
    may_move: bool = False,
    fixed: str = "",
    used_with: Sequence[Beside] = (),
    check: Callable[[Any], object] | None = None,
    alone: str | None = None,
    decides: bool = True,
    path: bool = False,
    in_table: str = "",
) -> Any:
    """An attrs field that knows its help text and its limits.

    Args:
        default: the value without a word from the user; None means that the run decides (see `defaults`).
        text: the field's docstring, and its `--help`.
        kind: bool, int, float or str; of the items when `many`.
        minimum: the least value allowed.
        above: a value that is already too small.
        maximum: the greatest value allowed; of a whole number without one, `MOST`.
        choices: the strings allowed.
        many: a tuple of values.
        or_one: of many, one alone may stand without a list around it.
        may_change: whether a resumed run may have another value than the one it started with.
        may_move: whether a resumed run may name another place for it: what lies there is compared with what the run started on.
        fixed: of one that may do neither, the reason: a sentence that the error of a resume ends with.
        used_with: settings that give this one a meaning; one of them is enough. () for a setting that always has one.
        check: raises ConfigError for a value that limits cannot tell from a good one.
        alone: what the option means on the command line where no value follows it.
        decides: whether the value decides what is computed; a path does not, what lies there is known by its hash.
        path: whether `~` stands for the home folder in it.
        in_table: of a key that the command line has no option for, the array of tables that it stands in.
    """
    maximum = MOST if maximum is None and kind is int else maximum
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "choices": tuple(choices)}
    resume = {MAY_CHANGE: may_change, MAY_MOVE: may_move, FIXED: fixed}
    use = {USED_WITH: tuple(used_with), "check": check, ALONE: alone}
    what = {"text": text, "kind": kind, "many": many, PATH: path, DECIDES: decides, IN_TABLE: in_table}
    metadata = {**what, **resume, **use, **limits}
    converter = None if not many else _one_or_many if or_one else _to_tuple
    return attrs.field(default=default, metadata=metadata, validator=_check, converter=converter)


def input_path(default: Any, text: str, **how: Any) -> Any:
    """An option that says where input lies: at a resume it may lie elsewhere, for what lies there is known by its hash."""
    return option(default, text, kind=str, may_move=True, decides=False, path=True, **how)


def tables(cls: type, name: str, *, may_move: bool = True, decides: bool = False, fixed: str = "") -> Any:
    """An attrs field for an array of tables, `[[name]]` in TOML; the command line has no option for it.

    `may_move`, `decides` and `fixed` are those of `option`.
    """

    def made(number: int, item: Any) -> Any:
        try:
            return cls(**item) if isinstance(item, dict) else item
        except ConfigError as error:
            raise error.amend(field=f"{name}[{number}].{error.finding.subject}") from error

    def convert(value: Any) -> Any:
        return tuple(made(number, item) for number, item in enumerate(value))

    resume = {MAY_CHANGE: False, MAY_MOVE: may_move, FIXED: fixed}
    metadata = {TABLES: cls, USED_WITH: (), DECIDES: decides, PATH: False, **resume}
    return attrs.field(default=(), converter=convert, metadata=metadata)


def options_of(group: type) -> list[attrs.Attribute[Any]]:
    """The settings of a table that the command line has an option for: all but its arrays of tables."""
    return [item for item in attrs.fields(group) if TABLES not in item.metadata]


def flag(name: str) -> str:
    """`batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


def told(value: Any) -> str:
    """A setting's value for people: a list without its brackets, an array of tables by what is set in each."""
    if attrs.has(type(value)):
        set_there = attrs.asdict(value, filter=lambda item, own: own != item.default)
        return f"{{{', '.join(f'{key} = {told(own)}' for key, own in set_there.items())}}}"
    if isinstance(value, tuple | list):
        return ", ".join(map(told, value)) or "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return "nothing" if value is None else str(value)


def _to_tuple(value: Any) -> Any:
    """A list as a tuple; what is neither stays, for `_check` to refuse (a string would fall apart into letters)."""
    return tuple(value) if isinstance(value, list) else value


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _to_tuple(value)


def _check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject a value of the wrong type or outside the limits, naming the option."""
    if value is None and attribute.default is None:
        return
    many, kind = attribute.metadata["many"], attribute.metadata["kind"]
    if many and not isinstance(value, tuple):
        raise ConfigError("wrong type", where=_where(attribute), expected=f"a list of {kind.__name__}", found=repr(value))
    for item in value if many else (value,):
        _check_type(attribute, item)
        _check_range(attribute, item)
        if attribute.metadata["check"] is not None:
            try:
                attribute.metadata["check"](item)
            except ConfigError as error:
                raise error.amend(subject=_where(attribute)) from error


def _check_type(attribute: attrs.Attribute[Any], value: Any) -> None:
    kind: type = attribute.metadata["kind"]
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        hint = f'Write it in quotes: "{value}".' if kind is str and type(value) in (int, float) else ""
        raise ConfigError("wrong type", where=_where(attribute), expected=kind.__name__, found=repr(value), hint=hint)
    if value == "":  # as a path it would be the folder one happens to be in
        raise ConfigError("empty", where=_where(attribute), expected="a text, or to leave the option out", found="''")
    if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode():
        expected = "valid Unicode, which a run's settings are written in"
        raise ConfigError("no text", where=_where(attribute), expected=expected, found=value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("not a finite number", where=_where(attribute), found=repr(value))


def _check_range(attribute: attrs.Attribute[Any], value: Any) -> None:
    limits = attribute.metadata
    where = _where(attribute)
    if limits["minimum"] is not None and value < limits["minimum"]:
        raise ConfigError("too small", where=where, expected=f"at least {limits['minimum']}", found=value)
    if limits["above"] is not None and value <= limits["above"]:
        raise ConfigError("too small", where=where, expected=f"more than {limits['above']}", found=value)
    if limits["maximum"] is not None and value > limits["maximum"]:
        raise ConfigError("too large", where=where, expected=f"at most {limits['maximum']}", found=value)
    if limits["choices"] and value not in limits["choices"]:
        choices = ", ".join(limits["choices"])
        hint = meant_value(attribute.name, str(value), flag) or did_you_mean(str(value), limits["choices"])
        raise ConfigError("no such choice", where=where, expected=choices, found=value, hint=hint)


def _where(attribute: attrs.Attribute[Any]) -> str:
    if attribute.metadata[IN_TABLE]:
        return str(attribute.name)
    return f"{attribute.name} ({flag(attribute.name)})"

"""Arguments of `--data`: a path each, or a named source of a mixture, which is the same as a table of the settings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

import attrs
from attrs import frozen

from apr_train.errors import ConfigError
from apr_train.run.settings import DataSettings, SourceSettings

SOURCE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""What a source may be called."""
_ARGUMENT = re.compile(rf"(?P<name>{SOURCE_NAME.pattern})=(?P<path>.+?)(?::(?P<weight>[-+]?(?:[0-9.][0-9.eE+-]*|inf|nan)))?")


@frozen(kw_only=True)
class DataArgument:
    """One argument of `--data`: a path, or `NAME=PATH:WEIGHT`."""

    name: str | None
    path: str
    weight: str | None

    @classmethod
    def parse(cls, text: str) -> DataArgument:
        """Take an argument apart; one that is a path as it stands is that."""
        found = None if os.path.lexists(text) else _ARGUMENT.fullmatch(text)
        return cls(name=None, path=text, weight=None) if found is None else cls(**found.groupdict())

    def source(self) -> SourceSettings:
        """The same as a table.

        Raises:
            ConfigError: for a weight that is no finite number.
        """
        try:
            weight = None if self.weight is None else float(self.weight)
            return SourceSettings(name=self.name, path=(self.path,), weight=weight)
        except (ValueError, ConfigError) as error:
            where = f"--data [{self.name}]"
            raise ConfigError(
                "a weight that is no finite number", where=where, expected="such as 0.3", found=self.weight
            ) from error

    def __str__(self) -> str:
        name = "" if self.name is None else f"{self.name}="
        return f"{name}{self.path}" + ("" if self.weight is None else f":{self.weight}")


def mixture_of(data: DataSettings) -> tuple[SourceSettings, ...]:
    """The sources with names, as tables, however they were said; none for one pool.

    Raises:
        ConfigError: for a weight that is no finite number.
    """
    named = [argument for argument in map(DataArgument.parse, data.data) if argument.name is not None]
    return (*data.source, *(argument.source() for argument in named))


def moved_sources(data: DataSettings, arguments: Sequence[str]) -> DataSettings:
    """The settings of a run with names in its data, where the user says of some of them where they lie now.

    Raises:
        ConfigError: as `mixture_of`.
    """
    now = {argument.name: argument for argument in map(DataArgument.parse, arguments)}
    if None in now or not mixture_of(data):
        return attrs.evolve(data, data=tuple(arguments), source=())
    tables = {item.name: item for item in mixture_of(data)}
    for name, argument in now.items():
        said = argument.source()
        before = tables.get(name, said)
        weight = before.weight if said.weight is None else said.weight
        tables[name] = attrs.evolve(before, path=said.path, weight=weight)
    return attrs.evolve(data, data=(), source=tuple(tables.values()))


def of_argument(text: str, change: Callable[[str], str]) -> str:
    """An argument of `--data` with another path."""
    argument = DataArgument.parse(text)
    return str(attrs.evolve(argument, path=change(argument.path)))

"""What a user asks of a run: settings from a file and by their names, of a new run or of one that goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from apr_train.errors import ConfigError, Finding
from apr_train.run.option import TABLES
from apr_train.run.other_names import advice, plain, settings_called
from apr_train.run.resume import Resume, plan_resume
from apr_train.run.settings import GROUPS, Settings
from apr_train.run.settings_file import from_tables, read_tables, unknown_in_tables, with_values
from apr_train.run.settings_paths import absolute_paths
from apr_train.suggest import did_you_mean

Config = Path | Mapping[str, Mapping[str, Any]]
"""Settings in tables: a file of TOML, or what would be in one."""
_FIELDS = {item.name: item for cls in GROUPS.values() for item in attrs.fields(cls)}


def asked_settings(config: Config | None, values: Mapping[str, Any]) -> Settings:
    """The settings of a new run: a file's, or the defaults, and what the user gave on top; paths are absolute.

    Raises:
        ConfigError: for a file that cannot be read, and for a bad value.
    """
    return absolute_paths(with_values(_settings(config), values))


def asked_run(config: Config | None, resume: Path | None, values: Mapping[str, Any]) -> tuple[Settings, Resume | None]:
    """The settings before any is decided, and the run to go on with; None for a new one.

    Raises:
        ConfigError: as `asked_settings`.
        RunError: as `plan_resume`.
    """
    if resume is None:
        return asked_settings(config, values), None
    wanted = stated(config) | dict(values)
    plan = plan_resume(resume, absolute_paths(with_values(Settings(), wanted), absent=True), set(wanted))
    return plan.settings, plan


def stated(config: Config | None) -> dict[str, Any]:
    """What tables say, as flat `{field: value}`.

    Raises:
        ConfigError: for a file that cannot be read, an unknown name, a bad value.
    """
    _settings(config)
    return {name: value for table in _tables(config).values() for name, value in table.items()}


def _tables(config: Config | None) -> Mapping[str, Any]:
    if config is None:
        return {}
    return read_tables(config) if isinstance(config, Path) else config


def _settings(config: Config | None) -> Settings:
    return from_tables(_tables(config), where=str(config) if isinstance(config, Path) else "config")


def named_values(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Settings as a caller in Python names them, as `with_values` wants them; None is the same as leaving one out.

    A path may be a `Path`, one value stand for a list of one, and a table of an array be any mapping.

    Args:
        values: name → value.
        where: the function that takes them, for messages.

    Raises:
        ConfigError: for every name that is no setting's, with the closest one.
    """
    given = {name: _plain(name, value) for name, value in values.items() if value is not None}
    if faults := [fault for name, value in given.items() for fault in _unknown(name, value)]:
        raise ConfigError.of(Finding(problem=problem, subject=where, field=name, hint=hint) for name, problem, hint in faults)
    return given


def _plain(name: str, value: Any) -> Any:
    metadata = _FIELDS[name].metadata if name in _FIELDS else {}
    if TABLES in metadata:
        return [_unpathed(item) for item in value] if isinstance(value, list | tuple) else value
    plain_value = _unpathed(value)
    return (plain_value,) if metadata.get("many") and isinstance(plain_value, str) else plain_value


def _unpathed(value: Any) -> Any:
    """A value with text for each path in it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _unpathed(item) for key, item in value.items()}
    return tuple(map(_unpathed, value)) if isinstance(value, list | tuple) else value


def _unknown(name: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """Of each name that is no setting's: the name, what is wrong, and what to write instead."""
    if name not in _FIELDS:
        yield name, "no such setting", _instead(name)
    elif TABLES in (metadata := _FIELDS[name].metadata):
        yield from unknown_in_tables(name, value, metadata[TABLES], how="Give a list of dictionaries.")


def _instead(name: str) -> str:
    if plain(name) in _FIELDS:
        return f"Write it as {plain(name)}."
    if called := settings_called(name):
        return f"Here that is {' or '.join(called)}."
    return advice(name, str) or did_you_mean(plain(name), _FIELDS)

"""Settings from and to TOML, the command line's values on top, and what a resume may change."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from apr_train.errors import ConfigError, RunError
from apr_train.run.settings import GROUPS, MAY_CHANGE, Settings, flag
from apr_train.suggest import did_you_mean


def read_toml(path: Path) -> Settings:
    """Read settings; what the file does not say has its default.

    Raises:
        ConfigError: for a file that is missing or not TOML, an unknown table or key (with the closest one), a bad value.
    """
    return from_tables(_tables(path), where=str(path))


def stated(path: Path) -> dict[str, Any]:
    """What a file says, as flat `{field: value}`.

    Raises:
        ConfigError: as `read_toml`.
    """
    read_toml(path)
    return {name: value for table in _tables(path).values() for name, value in table.items()}


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("cannot read the settings", where=path, found=error.strerror) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a TOML file: {error}", where=path) from error


def from_tables(tables: Mapping[str, Any], *, where: str) -> Settings:
    """Make settings from `{table: {key: value}}`; every unknown name is reported."""
    faults = []
    for name, table in tables.items():
        if name not in GROUPS:
            faults.append(f"{name}: {_closest(name)}")
        elif not isinstance(table, Mapping):
            faults.append(f"{name} is a table, not a value")
        else:
            known = attrs.fields_dict(GROUPS[name])
            faults += [f"{name}.{key}: {_closest(key)}" for key in table if key not in known]
    if faults:
        raise ConfigError("unknown settings", where=where, hint="; ".join(faults))
    try:
        return Settings(**{name: GROUPS[name](**table) for name, table in tables.items()})
    except ConfigError as error:
        raise error.amend(subject=where, field=error.finding.field or error.finding.subject) from error


def _closest(name: str) -> str:
    places = {key: f"{group}.{key}" for group, cls in GROUPS.items() for key in attrs.fields_dict(cls)}
    if name in places:
        return f"did you mean {places[name]}?"
    return did_you_mean(name, [*places, *GROUPS])


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Put flat `{field: value}` (the command line's) on top; the names are unique over all groups."""
    changes = {}
    for group, cls in GROUPS.items():
        mine = {name: values[name] for name in attrs.fields_dict(cls) if name in values}
        changes[group] = attrs.evolve(getattr(settings, group), **mine)
    return Settings(**changes)


def to_toml(settings: Settings) -> str:
    """Write settings so that `read_toml` gives them back equal; what is None is left out."""
    return tomli_w.dumps(attrs.asdict(settings, filter=lambda _, value: value is not None))


def check_resume(started: Settings, wanted: Settings) -> None:
    """Refuse a resume that would not continue the same run.

    Raises:
        RunError: naming every setting that differs and must not.
    """
    faults = []
    for group, cls in GROUPS.items():
        for item in attrs.fields(cls):
            before, after = (getattr(getattr(side, group), item.name) for side in (started, wanted))
            if before != after and not item.metadata[MAY_CHANGE]:
                faults.append(f"{flag(item.name)} was {before!r}, now {after!r}")
    if faults:
        raise RunError(
            "a resume cannot change " + "; ".join(faults),
            hint="Leave them out, or start a new run with --init pointing at the checkpoint's model.apr.",
        )

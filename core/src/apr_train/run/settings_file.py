"""Settings from and to TOML, the command line's values on top, and what a resume may change."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from apr_train.checkpoint.files import parse_toml
from apr_train.errors import ConfigError, Finding, FormatError, RunError
from apr_train.run.data_argument import mixture_of
from apr_train.run.option import FIXED, MAY_CHANGE, MAY_MOVE, TABLES, flag, told
from apr_train.run.other_names import advice, plain, settings_called
from apr_train.run.settings import GROUPS, DataSettings, Settings, SourceSettings
from apr_train.suggest import closest, nearest


def read_toml(path: Path) -> Settings:
    """Read settings; what the file does not say has its default.

    Raises:
        ConfigError: for a file that is missing or not TOML, an unknown table or key (with the closest one), a bad value.
    """
    return from_tables(read_tables(path), where=str(path))


def read_tables(path: Path) -> dict[str, Any]:
    """What a file of TOML says, table → key → value.

    Raises:
        ConfigError: for a file that cannot be read, or is not TOML.
    """
    try:
        return parse_toml(path)
    except FormatError as error:
        raise ConfigError.of(error.findings) from error


def from_tables(tables: Mapping[str, Any], *, where: str) -> Settings:
    """Make settings from `{table: {key: value}}`; every unknown name is reported."""
    faults = [fault for name, table in tables.items() for fault in _unknown(name, table)]
    if faults:
        raise ConfigError.of(Finding(problem=fault, subject=where, field=name, hint=hint) for name, fault, hint in faults)
    try:
        return Settings(**{name: GROUPS[name](**table) for name, table in tables.items()})
    except ConfigError as error:
        raise error.amend(subject=where, field=error.finding.field or error.finding.subject) from error


_PLACES = {key: f"{group}.{key}" for group, cls in GROUPS.items() for key in attrs.fields_dict(cls)}
"""Setting → `table.key`."""
_TABLES = f"The tables: {', '.join(f'[{group}]' for group in GROUPS)}."


def _unknown(name: str, table: Any) -> Iterator[tuple[str, str, str]]:
    """Of each name in a table that is no setting's: the name, what is wrong, and what to write instead."""
    if not isinstance(table, Mapping):
        if name in GROUPS:
            yield name, "a table is wanted, not a value", f"Write [{name}], and its settings below."
        else:
            yield name, "no such setting", _instead(name, None) or _TABLES
        return
    if name not in GROUPS:
        yield name, "no such table", nearest(plain(name), GROUPS) or _TABLES
    own = attrs.fields_dict(GROUPS[name]) if name in GROUPS else None
    for key, value in table.items():
        if own is None or key not in own:
            yield f"{name}.{key}", "no such setting", _instead(key, own)
        elif TABLES in own[key].metadata:
            yield from unknown_in_tables(f"{name}.{key}", value, own[key].metadata[TABLES])


def unknown_in_tables(name: str, value: Any, cls: type, *, how: str | None = None) -> Iterator[tuple[str, str, str]]:
    """The same of an array of tables; `how` it is written, where it is not in TOML."""
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        yield name, "an array of tables is wanted", how or f"Write [[{name}]], and its settings below."
        return
    own = attrs.fields_dict(cls)
    for number, table in enumerate(value):
        for key in (key for key in table if key not in own):
            yield f"{name}[{number}].{key}", "no such setting", nearest(plain(key), own) or f"Known here: {', '.join(own)}."


def _instead(key: str, own: Collection[str] | None) -> str:
    """What to write for a key that is not there: other trainers' names, and other tables than its own, are looked through."""
    if (name := plain(key)) in _PLACES:
        return f"Write it as {_PLACES[name]}."
    if called := settings_called(key):
        return f"Here that is {' or '.join(_PLACES[setting] for setting in called)}."
    if (text := advice(key, _PLACES.__getitem__)) is not None:
        return text
    near = closest(name, own or ()) or closest(name, _PLACES)
    if near is not None:
        return f"did you mean {_PLACES[near]}?"
    return f"Known here: {', '.join(sorted(own))}." if own is not None else ""


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Put flat `{field: value}` (the command line's) on top; the names are unique over all groups.

    Another `data` stands for the whole text: the sources of a file go with it.
    """
    values = {"source": ()} | dict(values) if "data" in values else values
    changes = {}
    for group, cls in GROUPS.items():
        mine = {name: values[name] for name in attrs.fields_dict(cls) if name in values}
        changes[group] = attrs.evolve(getattr(settings, group), **mine)
    return Settings(**changes)


def to_toml(settings: Settings) -> str:
    """Write settings so that `read_toml` gives them back equal; what is None is left out."""
    return tomli_w.dumps(attrs.asdict(settings, filter=lambda _, value: value is not None))


def check_resume(started: Settings, wanted: Settings) -> None:
    """Refuse a resume that would not continue the same run; what may lie elsewhere is compared by its content, later.

    Raises:
        RunError: naming every setting that differs and must not, with the reason.
    """
    faults = []
    for group, cls in GROUPS.items():
        for item in attrs.fields(cls):
            before, after = (getattr(getattr(side, group), item.name) for side in (started, wanted))
            moved = item.metadata[MAY_MOVE] and (before is None) == (after is None)
            if before != after and not item.metadata[MAY_CHANGE] and not moved:
                called = f"[[{group}.{item.name}]]" if TABLES in item.metadata else flag(item.name)
                faults.append(_unchangeable(called, "", before, after, item.metadata[FIXED]))
    faults += _other_mixture(started.data, wanted.data)
    if faults:
        raise RunError.of(faults)


_OTHER_SOURCES = "which row of which source comes next follows from all of them"


def _unchangeable(subject: str, field: str, before: Any, after: Any, reason: str) -> Finding:
    return Finding(
        subject=subject,
        field=field,
        problem=f"a resume cannot change this: {reason or 'only where it lies may change'}",
        expected=told(before),
        found=told(after),
        hint="Leave it out, or start a new run with --init pointing at the checkpoint's model.apr.",
    )


def _other_mixture(started: DataSettings, wanted: DataSettings) -> Iterator[Finding]:
    """What the sources of a run were and are not any more; where they lie may change."""
    before, after = ({str(item.name): item for item in mixture_of(data)} for data in (started, wanted))
    for name in sorted(before.keys() ^ after.keys()):
        was, now = (name if name in side else None for side in (before, after))
        yield _unchangeable("--data", name, was, now, _OTHER_SOURCES)
    for name in (name for name in before if name in after):
        for item in (item for item in attrs.fields(SourceSettings) if not item.metadata[MAY_MOVE]):
            was, now = getattr(before[name], item.name), getattr(after[name], item.name)
            if was != now:
                yield _unchangeable("--data", f"{name}.{item.name}", was, now, item.metadata[FIXED])

"""changes.jsonl: which settings a resume changed, and at which step; config.toml has the last values only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from apr_train.atomic import write_file
from apr_train.errors import ConfigError, RunError, printable
from apr_train.run.json_lines import read_json_lines
from apr_train.run.option import MAY_CHANGE, MOST, flag, told
from apr_train.run.settings import GROUPS, Settings

MAX_BYTES = 1 << 20
"""Bound on the file: some ten thousand changes."""
_LONGEST = 200
"""Characters of a value that is told: that of another version's setting may be anything."""
_NAME = re.compile(r"[a-z]\w{0,40}\.[a-z]\w{0,60}", re.ASCII)
"""A setting's, of this version or another."""
_HINT = "Move the file away: the run goes on without it, and knows nothing of these changes."


@frozen(kw_only=True)
class Change:
    """One setting that a resume changed."""

    step: int
    """Optimizer steps done with the value before."""
    setting: str
    """`data.batch_size`."""
    before: Any
    after: Any
    """Values as JSON has them; None: the run decided."""

    def __str__(self) -> str:
        name = flag(self.setting.partition(".")[2])
        return f"{name} {_told(self.before)} → {_told(self.after)} from step {self.step + 1:,} on"


def _told(value: Any) -> str:
    return "left open" if value is None else printable(told(value), most=_LONGEST)


def read_changes(path: Path) -> list[Change]:
    """The changes of a run, by step; none if there is no file.

    Raises:
        RunError: a line is damaged; the message gives its number.
    """
    if not path.exists():
        return []
    changes: list[Change] = []
    try:
        for number, values in enumerate(read_json_lines(path, most=MAX_BYTES), 1):
            changes.append(_change(path, number, values, since=changes[-1].step if changes else 0))
    except RunError as error:
        raise error.amend(hint=_HINT) from error
    return changes


def _change(path: Path, number: int, values: Any, *, since: int) -> Change:
    if not _is_change(values):
        expected = f"an object with {', '.join(sorted(attrs.fields_dict(Change)))}"
        where = f"line {number} is no change of a setting"
        raise RunError(where, where=path, expected=expected, found=repr(values)[:80])
    change = Change(**values)
    if change.step < since:
        raise RunError(
            f"line {number} is of an earlier step than the line before", where=path, expected=since, found=change.step
        )
    group, _, name = change.setting.partition(".")
    for value in (change.before, change.after) if _may_change(group, name) else ():
        try:
            GROUPS[group](**{name: value})
        except ConfigError as error:
            problem = f"line {number} has a value that the setting cannot have had: {error.finding.problem}"
            raise RunError(problem, where=path, field=change.setting, found=error.finding.found) from error
    return change


def _is_change(values: Any) -> bool:
    """Whether a line has what each has, of a setting that there may be, at a step that there may be."""
    if not isinstance(values, dict) or values.keys() != attrs.fields_dict(Change).keys():
        return False
    step, setting = values["step"], values["setting"]
    return type(step) is int and 0 <= step <= MOST and isinstance(setting, str) and _NAME.fullmatch(setting) is not None


def _may_change(group: str, name: str) -> bool:
    """Whether there is such a setting, and a resume may change it; other versions have others."""
    item = attrs.fields_dict(GROUPS[group]).get(name) if group in GROUPS else None
    return item is not None and bool(item.metadata[MAY_CHANGE])


def write_changes(path: Path, changes: Sequence[Change]) -> None:
    """Write all changes of a run; no file for none.

    Raises:
        OutputError: the file cannot be written; it is then as it was.
    """
    if changes or path.exists():
        write_file(path, "".join(f"{json.dumps(attrs.asdict(change))}\n" for change in changes).encode("utf-8"))


def settings_at(settings: Settings, changes: Iterable[Change], step: int) -> Settings:
    """The settings with which the run came to a step: the last ones, without what was changed at it or behind it."""
    values = {group: dict[str, Any]() for group in GROUPS}
    for change in reversed(list(changes)):
        group, _, name = change.setting.partition(".")
        if change.step >= step and _may_change(group, name):
            values[group][name] = change.before
    return Settings(**{group: attrs.evolve(getattr(settings, group), **values[group]) for group in GROUPS})


def differences(before: Settings, after: Settings, step: int) -> Iterator[Change]:
    """What is changed at a step, of the settings that may change."""
    for group, cls in GROUPS.items():
        for item in attrs.fields(cls):
            was, now = (getattr(getattr(side, group), item.name) for side in (before, after))
            if item.metadata[MAY_CHANGE] and was != now:
                yield Change(step=step, setting=f"{group}.{item.name}", before=was, after=now)


def at_first(changes: Iterable[Change], setting: str, now: Any) -> Any:
    """The value of a setting when the run began, of which `now` is the last."""
    return next((change.before for change in changes if change.setting == setting), now)


def last_change(changes: Iterable[Change], *settings: str) -> int:
    """The step at which one of some settings was changed last; -1 for never."""
    return max((change.step for change in changes if change.setting in settings), default=-1)

"""changes.jsonl: which settings a resume changed, and at which step; config.toml has the last values only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from apr_train.atomic import write_file
from apr_train.errors import ConfigError, RunError
from apr_train.run.json_lines import read_json_lines
from apr_train.run.option import MAY_CHANGE, flag, told
from apr_train.run.settings import GROUPS, Settings

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
    return "left open" if value is None else told(value)


def read_changes(path: Path) -> list[Change]:
    """The changes of a run, by step; none if there is no file.

    Raises:
        RunError: a line is damaged; the message gives its number.
    """
    return [_change(path, number, values) for number, values in enumerate(read_json_lines(path) if path.exists() else [], 1)]


def _change(path: Path, number: int, values: Any) -> Change:
    names = set(attrs.fields_dict(Change))
    right = isinstance(values, dict) and values.keys() == names and type(values["step"]) is int
    if not right or not isinstance(values["setting"], str):
        expected = f"an object with {', '.join(sorted(names))}"
        where = f"line {number} is no change of a setting"
        raise RunError(where, where=path, expected=expected, found=repr(values)[:80], hint=_HINT)
    group, _, name = values["setting"].partition(".")
    if _may_change(group, name):
        try:
            GROUPS[group](**{name: values["before"]})
        except ConfigError as error:
            problem = f"line {number} has a value that the setting cannot have had: {error.finding.problem}"
            found = error.finding.found
            raise RunError(problem, where=path, field=values["setting"], found=found, hint=_HINT) from error
    return Change(**values)


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

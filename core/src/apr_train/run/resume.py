"""Going on with a run: from which checkpoint, with which settings."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from attrs import evolve, frozen

from apr_train.errors import RunError
from apr_train.run.adapted import step_of_adapter
from apr_train.run.changes import Change, differences, read_changes, settings_at
from apr_train.run.data_argument import moved_sources
from apr_train.run.folder import CARD, CHANGES, CONFIG, MODEL, SAMPLES, StepFolder, find_checkpoint
from apr_train.run.provenance import step_of, written_metadata
from apr_train.run.samples import read_samples
from apr_train.run.settings import GROUPS, Settings
from apr_train.run.settings_file import check_resume, read_toml, with_values

_COMPILE = "run.compile"


@frozen(kw_only=True)
class Resume:
    """A run that goes on."""

    path: Path
    """What the user named: the run, or one checkpoint in it."""
    folder: Path
    checkpoint: StepFolder | None
    """None: the run was interrupted before its first checkpoint and starts over."""
    settings: Settings
    stated: frozenset[str] = frozenset()
    """The settings that the user gave with the resume."""
    changes: tuple[Change, ...] = ()
    """All that resumes of this run changed, this one included, by step."""

    @property
    def changed(self) -> tuple[Change, ...]:
        """What this resume changes."""
        return tuple(change for change in self.changes if change.step == self.step) if self.checkpoint is not None else ()

    def is_changed(self, setting: str) -> bool:
        """Whether this resume changes a setting, `run.precision` say."""
        return any(change.setting == setting for change in self.changed)

    def uncompiled(self) -> Resume:
        """The same, of a run whose blocks cannot be compiled any more: a change like those that are asked for."""
        if self.checkpoint is None:
            return self
        asked = [change for change in self.changed if change.setting == _COMPILE]
        before = asked[0].before if asked else self.settings.run.compile
        others = tuple(change for change in self.changes if change not in asked)
        now = (Change(step=self.step, setting=_COMPILE, before=before, after=False),) if before else ()
        return evolve(self, changes=(*others, *now))

    @property
    def model_path(self) -> str | None:
        """Where all weights are; None when the run starts over, and for one that trains adapters: its base is `--init`."""
        if self.checkpoint is None or self.settings.lora.lora_rank is not None:
            return None
        return str(self.checkpoint.path / MODEL)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do: no step, and the end is written (model.apr, which comes last, is of that step)."""
        adapted = self.settings.lora.lora_rank is not None
        written = step_of_adapter(self.folder) if adapted else step_of(written_metadata(self.folder / MODEL))
        whole = (self.folder / CARD).is_file() and written == self.step
        return whole and self.step == self.settings.run.steps

    def lost(self, name: str, path: str) -> bool:
        """Whether an input is no longer where the run found it, and the user does not say where it is now."""
        return name not in self.stated and not os.path.exists(path)  # noqa: PTH110  # Path's raises for a long name

    def require_unchanged(self) -> None:
        """Look again, now that the folder is held: another process may have gone on, or gone back, since the first look.

        Raises:
            RunError: when another checkpoint is the one to go on from.
        """
        _, now = find_checkpoint(self.path)
        if now != self.checkpoint:
            planned, found = ("no checkpoint" if item is None else item.path.name for item in (self.checkpoint, now))
            hint = "Give the same command again."
            raise RunError("the run went on meanwhile", where=self.folder, expected=planned, found=found, hint=hint)


def plan_resume(path: Path, wanted: Settings, stated: Collection[str]) -> Resume:
    """Find the run, and put those settings that the user stated on top of its own.

    Args:
        path: `runs/NAME`, or one checkpoint in it.
        wanted: holds the stated values.
        stated: the names of the fields that count.

    Raises:
        RunError: when there is no run, a setting differs that must not, or its samples or changes are damaged.
        ConfigError: when its config.toml is damaged.
    """
    folder, checkpoint = find_checkpoint(path)
    started = read_toml(folder / CONFIG)
    earlier = read_changes(folder / CHANGES)
    read_samples(folder / SAMPLES)  # a damaged line would stop the run only after its text was read
    values = {
        name: getattr(group, name)
        for group in (getattr(wanted, table) for table in GROUPS)
        for name in stated
        if hasattr(group, name)
    }
    if "data" in values and "source" not in values:
        moved = moved_sources(started.data, values["data"])
        values |= {"data": moved.data, "source": moved.source}
    wanted = with_values(started, values)
    check_resume(started, wanted)
    if checkpoint is not None and checkpoint.step > wanted.run.steps:
        expected, found = f"at least {checkpoint.step}, where the checkpoint stands", wanted.run.steps
        raise RunError("the run is beyond its last step already", where="--steps", expected=expected, found=found)
    return Resume(
        path=path,
        folder=folder,
        checkpoint=checkpoint,
        settings=wanted,
        stated=frozenset(stated),
        changes=() if checkpoint is None else _changes(earlier, started, wanted, checkpoint.step),
    )


def _changes(earlier: Sequence[Change], started: Settings, wanted: Settings, step: int) -> tuple[Change, ...]:
    """The changes up to a checkpoint, and those of going on from it with the settings that are wanted."""
    now = differences(settings_at(started, earlier, step), wanted, step)
    return (*(change for change in earlier if change.step < step), *now)

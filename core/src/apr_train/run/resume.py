"""Going on with a run: from which checkpoint, with which settings."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from attrs import frozen

from apr_train.errors import RunError
from apr_train.run.adapted import step_of_adapter
from apr_train.run.data_argument import moved_sources
from apr_train.run.folder import CARD, CONFIG, MODEL, SAMPLES, StepFolder, find_checkpoint
from apr_train.run.provenance import step_of, written_metadata
from apr_train.run.samples import read_samples
from apr_train.run.settings import GROUPS, Settings
from apr_train.run.settings_file import check_resume, read_toml, with_values


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
        RunError: when there is no run, a setting differs that must not, or its samples are damaged.
        ConfigError: when its config.toml is damaged.
    """
    folder, checkpoint = find_checkpoint(path)
    started = read_toml(folder / CONFIG)
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
    return Resume(path=path, folder=folder, checkpoint=checkpoint, settings=wanted, stated=frozenset(stated))

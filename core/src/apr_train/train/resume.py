"""Going on with a run: which checkpoint, which settings, and everything back where it was."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from attrs import frozen

from apr_train.errors import RunError
from apr_train.train.metrics import FILE as METRICS
from apr_train.train.metrics import cut_back
from apr_train.train.run import Run
from apr_train.train.run_folder import CONFIG, MODEL, StepFolder, checkpoints, find_checkpoint, remove_checkpoint
from apr_train.train.settings import Settings
from apr_train.train.settings_file import check_resume, read_toml, with_values
from apr_train.train.state import load_optimizer, read_state


@frozen(kw_only=True)
class Resume:
    """A run that goes on."""

    path: Path
    """What the user named: the run, or one checkpoint in it."""
    folder: Path
    checkpoint: StepFolder | None
    """None: the run was interrupted before its first checkpoint and starts over."""
    settings: Settings

    @property
    def model_path(self) -> str | None:
        """Where the weights are; None when the run starts over."""
        return None if self.checkpoint is None else str(self.checkpoint.path / MODEL)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return 0 if self.checkpoint is None else self.checkpoint.step

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
        RunError: when there is no run, or a setting differs that must not.
        ConfigError: when its config.toml is damaged.
    """
    folder, checkpoint = find_checkpoint(path)
    started = read_toml(folder / CONFIG)
    values = {
        name: getattr(group, name)
        for group in (wanted.model, wanted.data, wanted.optimizer, wanted.run)
        for name in stated
        if hasattr(group, name)
    }
    wanted = with_values(started, values)
    check_resume(started, wanted)
    if checkpoint is not None and checkpoint.step > wanted.run.steps:
        expected, found = f"at least {checkpoint.step}, where the checkpoint stands", wanted.run.steps
        raise RunError("the run is beyond its last step already", where="--steps", expected=expected, found=found)
    return Resume(path=path, folder=folder, checkpoint=checkpoint, settings=wanted)


def restore(run: Run, resume: Resume) -> None:
    """Put optimizer, data position, random generators and metrics back to the checkpoint.

    Later checkpoints are forgotten if the user named this one; otherwise it is the latest, and none is removed.

    Raises:
        FormatError: for a damaged file of the checkpoint.
        RunError: for one of another model or data.
    """
    checkpoint = resume.checkpoint
    if checkpoint is None:
        (run.folder / METRICS).unlink(missing_ok=True)
        return
    state = read_state(checkpoint.path)
    load_optimizer(checkpoint.path, run.model, run.optimizer, step=state["step"])
    run.restore(state)
    for later in checkpoints(run.folder) if resume.path == checkpoint.path else []:
        if later.step > checkpoint.step:
            run.display.say(f"forgetting {later.path.name}: the run goes on from {checkpoint.path.name}")
            remove_checkpoint(later.path)
    cut_back(run.folder / METRICS, checkpoint.step)

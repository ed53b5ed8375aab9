"""runs/NAME: its name, what lies where in it, and which checkpoints it holds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from attrs import frozen

from apr_train.atomic import clear_litter
from apr_train.errors import RunError

CONFIG = "config.toml"
MODEL = "model.apr"
CARD = "MODEL_CARD.md"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
_STEP = re.compile(r"step-(\d{6,})")
_DYING = ".removed-"


@frozen
class StepFolder:
    """A checkpoint: `step-000500/` with model.apr, optimizer.safetensors and state.json."""

    path: Path
    step: int


def step_name(step: int) -> str:
    """`step-000500`."""
    return f"step-{step:06d}"


def create_run_folder(out: Path, name: str | None, stem: str) -> Path:
    """Make the folder of a new run: `name` as asked, else `stem`, or `stem-2` and so on if that is taken.

    Raises:
        RunError: when a folder of the name that was asked for holds something.
    """
    out.mkdir(parents=True, exist_ok=True)
    if name is not None:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            hint = f"Continue it with --resume {folder}, or take another --run."
            raise RunError("the run's folder is not empty", where=folder, hint=hint)
        return folder
    number = 1
    while True:
        folder = out / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def checkpoints(folder: Path) -> list[StepFolder]:
    """The whole checkpoints of a run, oldest first; a half-written one has another name and is not among them."""
    found = [(entry, _STEP.fullmatch(entry.name)) for entry in folder.iterdir()] if folder.is_dir() else []
    folders = [StepFolder(entry, int(match[1])) for entry, match in found if match and entry.is_dir()]
    return sorted(folders, key=lambda item: item.step)


def find_checkpoint(path: Path) -> tuple[Path, StepFolder | None]:
    """The run's folder and the checkpoint to go on from: the latest of `runs/NAME`, or `runs/NAME/step-000500` itself.

    None instead of a checkpoint: the run was interrupted before its first one.

    Raises:
        RunError: when this is no run.
    """
    match = _STEP.fullmatch(path.name)
    if match and (path.parent / CONFIG).exists() and path.is_dir():
        return path.parent, StepFolder(path, int(match[1]))
    if (path / CONFIG).exists():
        whole = checkpoints(path)
        return path, whole[-1] if whole else None
    found = "no such folder" if not path.exists() else "nothing of the kind"
    raise RunError("this is no run", where=path, expected=f"a folder with {CONFIG}, or a {step_name(500)} in one", found=found)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint so that no moment leaves half of one under its name."""
    dying = folder.with_name(_DYING + folder.name)
    shutil.rmtree(dying, ignore_errors=True)  # what an earlier kill left; if it resists, the rename says so
    folder.rename(dying)
    shutil.rmtree(dying)


def prune(folder: Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints (0: all), and clear away what killed writers and removals left."""
    for leftover in folder.glob(f"{_DYING}*"):
        shutil.rmtree(leftover)
    for leftover in folder.glob(".step-*.part"):
        clear_litter(folder / leftover.name[1:].partition(".")[0])
    for old in checkpoints(folder)[:-keep] if keep else []:
        remove_checkpoint(old.path)

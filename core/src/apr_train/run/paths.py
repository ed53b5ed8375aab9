"""What a user names when the checkpoint of a run is meant. Torch-free."""

from __future__ import annotations

from pathlib import Path

from apr_train.run.folder import CONFIG, MODEL, STATE
from apr_train.run.identity import FILE as IDENTITY


def weights_of(path: str | Path) -> str:
    """The file itself for one step of a run, whose folder holds the optimizer's tensors, too; else the path as it is."""
    folder = Path(path)
    return str(folder / MODEL) if (folder / STATE).is_file() and (folder / MODEL).is_file() else str(path)


def run_of(path: str | Path) -> Path | None:
    """The run that a checkpoint belongs to: `runs/NAME` for itself, its model.apr, or one of its steps."""
    found = Path(path).absolute()
    nearest = [found, found.parent, found.parent.parent]
    return next((folder for folder in nearest if all((folder / name).is_file() for name in (CONFIG, IDENTITY))), None)

"""The run's surroundings: rows that the model can hold, a folder that can be written, disk for the checkpoints."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from apr_train import rules
from apr_train.errors import Finding
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import NameMap

STATE_COPIES = 2
"""AdamW's two moments, in the weights' own type."""


def sequence_findings(sequence_length: int, config: ModelConfig) -> list[Finding]:
    """A row must not have more tokens than the model has usable positions."""
    if 0 < sequence_length <= config.usable_positions:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_009,
            subject="--seq-len",
            problem="the model has no position for every token of a row",
            expected=f"1 to {config.usable_positions} usable positions",
            found=str(sequence_length),
        )
    ]


def parameter_count(name_map: NameMap) -> int:
    """Stored parameters of the model, tied ones once."""
    return sum(math.prod(entry.shape or ()) for entry in name_map.fills.values())


def out_findings(out: Path) -> list[Finding]:
    """The folder, or the nearest one that exists above it, can be written."""
    folder = _existing(out)
    try:
        out.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # it is judged by what is above it
    except OSError as error:  # a name that is too long, a loop of links: no folder can be made there
        return [_unwritable(out, str(error.strerror))]
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return []
    return [_unwritable(out, f"{folder} is {'not writable' if folder.is_dir() else 'not a folder'}")]


def _unwritable(out: Path, found: str) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_013,
        subject=str(out),
        problem="the run's folder cannot be written",
        expected="a writable folder",
        found=found,
    )


def disk_findings(out: Path, parameters: int, checkpoints: int, *, weight_bytes: int) -> list[Finding]:
    """Room for the checkpoints that are to come, each the model and its two moments, and for the model at the end."""
    needed = parameters * weight_bytes * (checkpoints * (1 + STATE_COPIES) + 1)
    plural = "" if checkpoints == 1 else "s"
    folder = _existing(out)
    if not folder.is_dir() or (free := shutil.disk_usage(folder).free) >= needed:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_014,
            subject=str(out),
            problem=f"not enough disk for {checkpoints} checkpoint{plural} of {parameters:,} parameters, and the model alone",
            expected=f"{gigabytes(needed)} free",
            found=f"{gigabytes(free)} free",
            hint="Keep fewer checkpoints (--keep), or write elsewhere (--out).",
        )
    ]


def gigabytes(count: float) -> str:
    """Bytes as people read them; 1 GB is 10⁹ bytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:  # a dangling link is there, and no folder can take its place
        path = path.parent
    return path

"""A run that trained adapters, read back: which adapter a path means, and on which base it was trained."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

from apr_train.checkpoint.adapter_files import open_adapter
from apr_train.checkpoint.companions import TOKENIZER
from apr_train.checkpoint.folder import ADAPTER
from apr_train.checkpoint.header import RopeRows
from apr_train.errors import AprTrainError, RunError
from apr_train.run.folder import ADAPTER_FOLDER, CONFIG, MODEL, checkpoints, run_of
from apr_train.run.identity import read_identity
from apr_train.run.settings_file import read_toml

BASE_NOTE, NAME_NOTE, STEP_NOTE = "apr_train.base", "apr_train.base_name", "apr_train.step"
"""What the header of a run's adapter notes: the content hash of the base, its name, and the step."""


@frozen(kw_only=True)
class AdaptedRun:
    """A run's adapter and the base that belongs to it."""

    run: Path
    adapter: Path
    """The folder with the adapter's two files."""
    base: str
    """`--init` of the run."""
    base_hash: str | None
    """Of the base's content when the run began."""
    arch: str | None
    rope_layout: RopeRows | None
    tokenizer: str | None
    """Where the run's tokenizer lies; None: in the base."""


def adapted_run(path: str | Path) -> AdaptedRun | None:
    """What a path means in a run that trained adapters: the run's result, or that of one checkpoint; None for anything else.

    Raises:
        RunError: a run that has no result yet, or whose records are damaged.
        ConfigError: settings that cannot be read.
    """
    folder = Path(path).parent if Path(path).name == ADAPTER else Path(path)
    run = run_of(folder) if os.path.isdir(folder) else None  # noqa: PTH112  # Path's raises for a long name
    if run is None or (folder / MODEL).is_file():
        return None
    settings = read_toml(run / CONFIG)
    if settings.lora.lora_rank is None or settings.model.init is None:
        return None
    if folder.absolute() == run:
        folder = _result(run)
    if not (folder / ADAPTER).is_file():
        return None
    end = run / ADAPTER_FOLDER
    return AdaptedRun(
        run=run,
        adapter=folder,
        base=settings.model.init,
        base_hash=read_identity(run).init,
        arch=settings.model.arch,
        rope_layout=settings.model.rope_layout,
        tokenizer=str(end) if (end / TOKENIZER).is_file() else settings.model.tokenizer,
    )


def _result(run: Path) -> Path:
    """The folder of the adapter that a run ended with.

    Raises:
        RunError: when it has not ended.
    """
    if (run / ADAPTER_FOLDER / ADAPTER).is_file():
        return run / ADAPTER_FOLDER
    whole = checkpoints(run)
    hint = f"Its last checkpoint is {whole[-1].path}." if whole else "It has no checkpoint either."
    expected = f"{ADAPTER_FOLDER}/{ADAPTER}"
    raise RunError("the run has no result yet", where=run, expected=expected, found="nothing", hint=hint)


def step_of_adapter(run: Path) -> int | None:
    """The step that a run's result was written at; None when there is none, or it does not say."""
    try:
        noted = open_adapter(run / ADAPTER_FOLDER).note.get(STEP_NOTE, "")
    except AprTrainError:
        return None
    return int(noted) if noted.isascii() and noted.isdigit() else None

"""runs/NAME: its name, what lies where in it, its lock, its checkpoints, and what a user may name to mean it."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from attrs import frozen

from apr_train.atomic import clear_litter, lock
from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.folder import ADAPTER, ADAPTER_CONFIG, some_of
from apr_train.checkpoint.given_name import given_name, given_stem
from apr_train.errors import ConfigError, FormatError, OutputError, RunError

LOCK = ".lock"
LAUNCH = ".launch"
"""Which launch of several processes the run is of (`run.launch`)."""
logger = logging.getLogger(__name__)


class InUseError(RunError):
    """A folder that a new run cannot have: it holds something, or another process is training in it."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the system lets go of it when the process ends, however it ends.

    Raises:
        InUseError: when another process trains in it.
        OutputError: when there can be no lock in it.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        problem = f"the run's folder cannot be locked ({error.strerror})"
        raise OutputError(problem, where=folder / LOCK, hint="Check the path and its permissions.") from error
    try:
        held = lock(descriptor)
        if held is False:
            hint = "Wait for it to end, or take another --run."
            raise InUseError("another process is training in this folder", where=folder, hint=hint)
        if held is None:
            logger.warning("%s: the file system has no locks: see to it that no other process trains in this folder", folder)
        yield
    finally:
        os.close(descriptor)


OUT = "runs"
"""The folder of runs, where nothing else is asked for."""
CONFIG = "config.toml"
IDENTITY = "identity.json"
PREFLIGHT = "preflight.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
CHANGES = "changes.jsonl"
"""What resumes changed."""
MACHINE = "machine.json"
PROFILE = "profile"
"""The folder of what `--profile` leaves."""
TRACKERS = "trackers"
"""What trackers keep in a run's folder: a folder each."""
MODEL = "model.apr"
CARD = "MODEL_CARD.md"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
AVERAGING = "averaging.safetensors"
"""With --ema: the trained weights, whose place the averaged ones have in the model, and the averages in float32."""
ADAPTER_FOLDER = "adapter"
"""What a run that trains adapters leaves in place of model.apr; in a checkpoint its files lie beside the optimizer's."""
_WRITTEN = frozenset({MODEL, OPTIMIZER, AVERAGING, STATE, ADAPTER_CONFIG, ADAPTER})
"""What a run writes into the folder of a checkpoint."""
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


@contextmanager
def new_run_folder(out: Path, name: str | None, stem: str) -> Iterator[Path]:
    """Make the folder of a new run and hold it: `name` as asked, else `stem`, or `stem-2` and so on if that is taken.

    Raises:
        ConfigError: for a name that leads out of `out`.
        InUseError: when the folder of the name that was asked for holds something, or is another process's.
        OutputError: when it cannot be made.
    """
    if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts):
        hint = "Name the folder above it with --out."
        raise ConfigError("the run's name leads out of --out", where="--run", expected="a name", found=name, hint=hint)
    with ExitStack() as held:
        yield held.enter_context(_taken(out / name)) if name is not None else _take_first(out, stem, held)


def _take_first(out: Path, stem: str, held: ExitStack) -> Path:
    numbers = count(2)
    folder = out / stem
    while True:
        with suppress(InUseError):
            return held.enter_context(_taken(folder))
        folder = out / f"{stem}-{next(numbers)}"


@contextmanager
def _taken(folder: Path) -> Iterator[Path]:
    require_unused(folder)  # before a lock is put into what is somebody's
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"the run's folder cannot be made ({error.strerror})"
        raise OutputError(problem, where=folder, hint="Take another --run or --out.") from error
    with locked(folder):
        require_unused(folder)
        yield folder


def require_unused(folder: Path) -> None:
    """Refuse a folder that a new run cannot have; one in which a start ended before it trained anything is free again.

    Raises:
        InUseError: when something else is in it, or it is a file.
    """
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise InUseError("the run's folder is a file", where=folder, hint="Take another --run.") from error
    if not _nothing_trained(entries):
        resume = f"Continue it with --resume {shlex.quote(str(folder))}, or take" if (folder / CONFIG).exists() else "Take"
        raise InUseError("the run's folder is not empty", where=folder, hint=f"{resume} another --run.")


def _nothing_trained(entries: list[Path]) -> bool:
    """Whether all that is there is what a start leaves that ended, however it did, before the first line of metrics."""
    names = {entry.name for entry in entries if not _is_part(entry.name)}
    later = {PREFLIGHT, CONFIG, MACHINE, METRICS, TRACKERS}
    ours = names <= {LOCK, LAUNCH, IDENTITY, *later} and (IDENTITY in names or not names & later)
    ours = ours and all(_is_identity(entry) for entry in entries if entry.name == IDENTITY)
    return ours and not any(entry.stat().st_size for entry in entries if entry.name == METRICS)


def _is_part(name: str) -> bool:
    """Whether a name is that of a file in the making, as a killed writer leaves it."""
    return name.startswith(".") and name.endswith(".part")


def _is_identity(path: Path) -> bool:
    """Whether an identity.json is a run's, and not somebody else's file of that name."""
    try:
        return {"corpus", "tokenizer"} <= parse_json(path).keys()
    except FormatError:
        return False


_KEPT = frozenset({LOCK, CONFIG, IDENTITY, PREFLIGHT, MACHINE, METRICS, SAMPLES, CHANGES, MODEL, CARD})


def kept_files(folder: Path) -> list[Path]:
    """The files of a run that are read again, checkpoints included."""
    own = [folder / name for name in sorted(_KEPT)]
    own += [folder / ADAPTER_FOLDER / name for name in (ADAPTER_CONFIG, ADAPTER)]
    return [*own, *(path for step in checkpoints(folder) for path in sorted(step.path.iterdir()))]


def is_kept_by_a_run(path: str | Path) -> bool:
    """Whether a path, wherever its links lead, is a file that a run reads again: its result, its records, a checkpoint."""
    real = Path(os.path.realpath(path))
    run = run_of(real)
    if run is None:
        return False
    inside = real.parent.name == ADAPTER_FOLDER or _STEP.fullmatch(real.parent.name) is not None
    return real.name in _KEPT if real.parent == run else inside


def name_of(path: str | Path) -> str:
    """What a checkpoint is called: by the run that keeps it, whose files all have one name, or by its own; never a path."""
    run, place = run_of(path), Path(path).absolute()
    is_its_own = place == run or any(is_kept_by_a_run(name) for name in (place, place / ADAPTER))
    return given_name(run) if run is not None and is_its_own else given_stem(path)


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
    expected = f"a folder with {CONFIG}, or a {step_name(500)} in one"
    raise RunError("this is no run", where=path, expected=expected, found=found, hint=run_hint(path))


def run_hint(path: Path) -> str | None:
    """`Give the run`, of a path that is none: the run or the step that a file lies in, or the runs in a folder."""
    around = [folder for folder in (path.parent, path.parent.parent) if _is_run(folder)]
    if around:
        is_step = path.name in _WRITTEN and _STEP.fullmatch(path.parent.name)
        return f"Give the run: {around[0]}" + (f", or the checkpoint in it: {path.parent}" if is_step else "")
    runs = _runs_in(path) or _runs_in(path / OUT)
    return f"Give the run: {some_of([str(run) for run in runs])}" if runs else None


def _is_run(folder: Path) -> bool:
    return all(os.path.isfile(folder / name) for name in (CONFIG, IDENTITY))  # noqa: PTH113  # Path's raises where it may not look


def _runs_in(folder: Path) -> list[Path]:
    """The runs that lie in a folder; none in what cannot be listed."""
    try:
        return sorted(entry for entry in folder.iterdir() if _is_run(entry))
    except (OSError, ValueError):
        return []


def foreign_files(folder: Path) -> list[str]:
    """What lies in a checkpoint's folder that no run wrote, killed ones included."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.name not in _WRITTEN)
    return [name for name in names if not _is_part(name)]


def require_removable(folder: Path) -> None:
    """Refuse to remove a checkpoint into which somebody has put a file of their own.

    Raises:
        RunError: naming the files.
    """
    if foreign := foreign_files(folder):
        problem = "the checkpoint would be removed, and holds what no run wrote"
        hint = "Move it away, then give the same command again."
        raise RunError(problem, where=folder, found=", ".join(foreign), hint=hint)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint so that no moment leaves half of one under its name.

    Raises:
        RunError: something else lies in it.
    """
    require_removable(folder)
    dying = folder.with_name(_DYING + folder.name)
    shutil.rmtree(dying, ignore_errors=True)  # what an earlier kill left; if it resists, the rename says so
    folder.rename(dying)
    shutil.rmtree(dying)


def prune(folder: Path, keep: int, spare: Collection[int] = ()) -> None:
    """Keep the newest `keep` checkpoints (0: all) and those of the steps `spare`; clear away what killed writers left.

    A checkpoint into which somebody has put a file of their own stays.
    """
    for leftover in folder.glob(f"{_DYING}step-*"):
        shutil.rmtree(leftover)
    for leftover in folder.glob(".step-*.part"):
        clear_litter(folder / leftover.name[1:].partition(".")[0])
    for old in checkpoints(folder)[:-keep] if keep else []:
        if old.step not in spare and not foreign_files(old.path):
            remove_checkpoint(old.path)


def weights_of(path: str | Path) -> str:
    """The file itself for one step of a run, whose folder holds the optimizer's tensors, too; else the path as it is."""
    folder = Path(path)
    is_step = all(os.path.isfile(folder / name) for name in (STATE, MODEL))  # noqa: PTH113  # Path's raises where it may not look
    return str(folder / MODEL) if is_step else str(path)


def run_of(path: str | Path) -> Path | None:
    """The run that a checkpoint belongs to: `runs/NAME` for itself, its model.apr, or one of its steps."""
    found = Path(path).absolute()
    nearest = [found, found.parent, found.parent.parent]
    return next((folder for folder in nearest if all((folder / name).is_file() for name in (CONFIG, IDENTITY))), None)

"""What a launcher (torchrun) says to each process that it starts, and by what a run knows its launch again after a restart."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Self

from attrs import frozen

from apr_train.atomic import write_file
from apr_train.checkpoint.files import parse_json
from apr_train.errors import ConfigError, FormatError, RunError
from apr_train.run.folder import LAUNCH
from apr_train.run.settings import ProcessSettings

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_NAMELESS = "none"
"""torchrun's id of a launch that was given none."""


@frozen(kw_only=True)
class Launch:
    """One process of several, as torchrun's environment variables say."""

    rank: int
    size: int
    local_rank: int
    """Counted on its machine."""
    local_size: int
    """Processes on its machine."""
    address: str
    """Where the processes meet."""
    port: int
    restarts: int = 0
    """How often the launcher has started all processes anew."""
    id: str
    """The same for all processes of a launch, and after a restart."""

    @property
    def nodes(self) -> int:
        """Machines, where each has equally many processes."""
        return max(1, self.size // self.local_size)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self | None:
        """The launch that the environment tells of; None where nobody launched several processes.

        Raises:
            RunError: when a part of it is absent or no number.
        """
        if "RANK" not in environ or "WORLD_SIZE" not in environ:
            return None
        numbers = {name: _number(environ, name) for name in _NUMBERS}
        if not 0 <= numbers["RANK"] < numbers["WORLD_SIZE"]:
            found = f"RANK {numbers['RANK']}, WORLD_SIZE {numbers['WORLD_SIZE']}"
            raise RunError("no such process", where="RANK", expected="0 ≤ RANK < WORLD_SIZE", found=found, hint=_HINT)
        return cls(
            rank=numbers["RANK"],
            size=numbers["WORLD_SIZE"],
            local_rank=numbers["LOCAL_RANK"],
            local_size=numbers["LOCAL_WORLD_SIZE"],
            address=environ.get("MASTER_ADDR", "127.0.0.1"),
            port=numbers["MASTER_PORT"],
            restarts=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            id=_id(environ),
        )


_HINT = "Start the processes with torchrun, or unset RANK and WORLD_SIZE for a run of one process."


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not value.isascii() or not value.isdigit():
        found = repr(value) if name in environ else "no such variable"
        raise RunError("the launch of several processes is not told whole", where=name, found=found, hint=_HINT)
    return int(value)


def _id(environ: Mapping[str, str]) -> str:
    """Of torchrun's own id; else the launcher is known by its process, which outlives those that it starts.

    A digest, for it is written into the run's folder, which is nobody's place for the name of a machine.
    """
    named = environ.get("TORCHELASTIC_RUN_ID", _NAMELESS)
    text = f"{socket.gethostname()} {os.getppid()}" if named == _NAMELESS else named
    return blake2b(text.encode(), digest_size=16, person=b"apr-launch").hexdigest()


def replicas(settings: ProcessSettings, launch: Launch) -> int:
    """How many groups of processes there are that each have all parameters between them.

    Raises:
        ConfigError: when that does not come out even, or contradicts `--shard`.
    """
    way = settings.shard
    if way == "auto":
        way = "hybrid" if settings.replicate is not None or launch.nodes > 1 else "full"
    found = {"full": 1, "none": launch.size, "hybrid": settings.replicate or launch.nodes}[way]
    if settings.replicate not in (None, found):
        problem, expected = f"--shard {way} has its own number of groups", f"{found}, or --shard hybrid"
        raise ConfigError(problem, where="--replicate", expected=expected, found=settings.replicate)
    if launch.size % found:
        expected = f"a divisor of {launch.size}, the number of processes"
        raise ConfigError("the processes cannot be divided so", where="--replicate", expected=expected, found=found)
    return found


def note_launch(folder: Path, launch: Launch) -> None:
    """Write into a run's folder which launch it is of, so that a restart finds it.

    Raises:
        OutputError: when that cannot be written.
    """
    write_file(folder / LAUNCH, (json.dumps({"launch": launch.id}) + "\n").encode("utf-8"))


def run_of_launch(out: Path, launch: Launch, name: str | None = None) -> Path | None:
    """The run that this launch began before its last restart; None: it began none.

    Args:
        out: the folder of runs.
        launch: this one.
        name: of the run, where the user gave one; else it is the newest that the launch began, if an id was used twice.
    """
    places = out.glob(f"*/{LAUNCH}") if name is None else [out / name / LAUNCH]
    noted = [path for path in places if _noted(path) == launch.id]
    return max(noted, key=lambda path: path.stat().st_mtime).parent if noted else None


def _noted(path: Path) -> str | None:
    try:
        found = parse_json(path).get("launch")
    except FormatError:
        return None
    return found if isinstance(found, str) else None

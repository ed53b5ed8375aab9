"""One input tried in a process of its own: limits on time and memory, and a verdict on how the command ended."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.inputs import make_input

SECONDS = 5
MEMORY = 200_000_000
MESSAGE = 4096
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


class Outcome(NamedTuple):
    """How one input ended."""

    kind: str
    number: int
    verdict: str
    """clean, refused or fault."""
    seconds: float
    """Of a processor."""
    memory: int
    """Bytes, beyond what the process had before."""
    what: str
    """The command and the changed files."""
    said: str = ""
    """Of a fault: why it is one."""


WITH_TORCH = ("run", "lora", "fim", "masked")
"""The kinds whose commands import torch."""


class Share(NamedTuple):
    """The work of one process."""

    seeds: Path
    kinds: list[str]
    seed: int
    first: int
    step: int
    deadline: float
    keep: Path | None


def share_of_work(share: Share) -> list[Outcome]:
    """Every so-many-th input of each kind in turn, until time is up; at least one of each."""
    outcomes: list[Outcome] = []
    for number in count(share.first, share.step):
        for kind in share.kinds:
            if number != share.first and time.monotonic() > share.deadline - 1:
                return outcomes
            outcomes.append(try_out(share.seeds, kind, number, share.seed, keep=share.keep))
    return outcomes


@cache
def _prepare(*, torch: bool) -> None:
    """Import what the commands import, once, before the processes divide."""
    import gguf.quants  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    if torch:
        __import__("apr_train.inference.evaluate")
        __import__("apr_train.training.setup")
        __import__("apr_train.training.finish")
        __import__("apr_train.training.loop")
    from apr_train.cli.group import COMMANDS

    for module, _ in COMMANDS.values():
        __import__(f"apr_train.cli.{module}")
    from apr_train.family.registry import Registry

    Registry.discover().families()


def try_out(seeds: Path, kind: str, number: int, seed: int, *, keep: Path | None = None, aloud: bool = False) -> Outcome:
    """Make an input and run its command on it."""
    _prepare(torch=kind in WITH_TORCH)
    folder = Path(tempfile.mkdtemp(dir=seeds.parent))
    try:
        made = make_input(seeds, kind, number, seed, folder)
        before = _bytes("VmRSS")
        process = os.fork()
        if not process:
            _child(made.command, folder)
        _, status, used = os.wait4(process, 0)
        memory = max(0, used.ru_maxrss * 1024 - before)
        verdict, said = _verdict(status, memory, folder, as_json="--json" in made.command)
        if aloud:
            print((folder / "out").read_text(errors="replace"), (folder / "err").read_text(errors="replace"), sep="\n")
        if keep is not None and (verdict == "fault" or aloud):
            shutil.copytree(folder, keep / f"{kind}-{number}", dirs_exist_ok=True)
        what = f"{made.changed}: apr-train {' '.join(made.command)}"
        return Outcome(kind, number, verdict, used.ru_utime + used.ru_stime, memory, what, said)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


def _child(words: list[str], folder: Path) -> None:
    """Run a command under the limits; never returns."""
    code = 99
    try:
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.environ["APR_TRAIN_CACHE"] = str(folder / "cache")
        data = _bytes("VmData") + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        signal.alarm(60)
        code = _run(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # whatever it is: it belongs into the verdict, and this process must not go on as the parent
        (folder / "fault").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _run(words: list[str]) -> int:
    import click
    from apr_train.cli import cli

    try:
        return cli.main(words, prog_name="apr-train", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code


def _verdict(status: int, memory: int, folder: Path, *, as_json: bool) -> tuple[str, str]:
    fault = folder / "fault"
    if fault.exists():
        return "fault", fault.read_text()[-3000:]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        why = {signal.SIGXCPU: f"more than {SECONDS} s", signal.SIGALRM: "it waited for a minute"}.get(number)
        return "fault", why or f"signal {signal.Signals(number).name}"
    out, err = ((folder / name).read_text(encoding="utf-8", errors="surrogateescape") for name in ("out", "err"))
    code = os.WEXITSTATUS(status)
    said = _wrong(out, err, code, as_json=as_json)
    if memory > MEMORY:
        said = f"{memory / 1e6:.0f} MB"
    if said:
        return "fault", said
    return ("clean" if code in (0, 1) and "Error: " not in err else "refused"), ""


def _wrong(out: str, err: str, code: int, *, as_json: bool) -> str:
    """What is wrong with what was printed; empty when nothing is."""
    message = err.rpartition("Error: ")[2] if "Error: " in err else ""
    if len(message.encode(errors="replace")) > MESSAGE:
        return f"a message of {len(message)} characters: {message[:300]}"
    if "Traceback (most recent call last)" in err:
        return f"a traceback: {err[-1500:]}"
    if found := _CONTROL.search(out + err):
        text = out + err
        return f"a raw control: {text[max(0, found.start() - 60) : found.end() + 20]!r}"
    if as_json and out:
        try:
            json.loads(out, parse_constant=_no_constant)
        except ValueError as error:
            return f"no JSON: {error}: {out[:200]}"
    return "" if code in (0, 1, 2, 3) else f"exit status {code}: {err[-500:]}"


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} in JSON")

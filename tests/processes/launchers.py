"""Commands under torchrun, of one machine or, on the loopback, of two; and what comes of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from apr_train.run.folder import METRICS

TRAIN = (
    *("--arch", "codebert", "--preset", "tiny", "--vocab-size", "340", "--data", "text", "--sequence-length", "32"),
    *("--batch-size", "3", "--precision", "fp32", "--device", "cpu", "--val-every", "0", "--val-batches", "1", "--seed", "3"),
)


def make_text(place):
    (place / "text").mkdir()
    for number in range(20):
        lines = (f"def scale_{n}(values):\n    return [value * {n} for value in values]\n" for n in range(number, number + 40))
        (place / "text" / f"{number}.py").write_text("".join(lines))


def torchrun(place, *arguments, restarts=0, cache=None, path=(), how=("--standalone",), count=2):
    """A launcher of so many processes in a folder; `path`: folders in front of those that Python looks for packages in."""
    command = [sys.executable, "-m", "torch.distributed.run", *how, "--nproc-per-node", str(count)]
    command += ["--max-restarts", str(restarts), "-m", "--", "apr_train", *arguments]
    search = os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "APR_TRAIN_CACHE": str(cache or place / "cache"), "PYTHONPATH": search}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=place, env=environment, text=True, start_new_session=True, **streams)


def two_machines(places, *arguments, name, paths=((), ()), caches=(None, None), more=((), ())):
    """Two launchers that meet on the loopback, of one process each; the first begins earlier, so that it has rank 0."""
    how = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", name)
    launchers = []
    for place, path, cache, own in zip(places, paths, caches, more, strict=True):
        launchers.append(torchrun(place, *arguments, *own, path=path, cache=cache, how=how, count=1))
        time.sleep(2)
    return launchers


def free_port():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def ended(*launchers, seconds=240):
    """Exit statuses, and all that was said, of launchers that end by themselves."""
    try:
        said = [launcher.communicate(timeout=seconds) for launcher in launchers]
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    return [launcher.returncode for launcher in launchers], *("".join(texts) for texts in zip(*said, strict=True))


def process_of(launcher, rank):
    """The process of a rank, a child of the launcher; None: there is none just now."""
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=False).stdout.split()
    for child in map(int, children):
        try:
            if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
                return child
        except OSError:
            continue
    return None


def steps_in(folder):
    return len((folder / METRICS).read_text().splitlines()) if (folder / METRICS).exists() else 0


def send(launcher, rank, number, *, once):
    """A signal to the process of a rank, once something is so."""
    end = time.monotonic() + 120
    while not once():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    process = process_of(launcher, rank)
    os.kill(process, number)
    return process


def errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("Error: ")]

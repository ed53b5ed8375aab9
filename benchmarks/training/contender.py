"""The processes that are timed in turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from training.steps import COMPILED, EAGER, OURS, Setting
from training.worker import PLAIN, REUSING

BENCHMARKS = Path(__file__).parents[1]


class Contender:
    """A contender as the bench sees it: started when it is needed, asked for windows."""

    def __init__(self, name: str, shape: str, precision: str, allocator: str, setting: Setting) -> None:
        self.name, self.restart = name, False
        told = json.dumps(asdict(setting))
        self.command = [sys.executable, "-m", "training.worker", name, shape, precision, allocator, told]
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, float] = {}
        self.windows: list[dict[str, float]] = []

    def window(self, steps: int) -> float:
        """Tokens per second over `steps` steps."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=BENCHMARKS
            )
            ready = self._read()
            self.ready = self.ready or ready
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        self.windows.append(self._read())
        if self.restart:
            self.stop()
        return self.windows[-1]["tokens_per_s"]

    def window_alone(self, steps: int) -> float:
        """The best of three in a process that ends afterwards."""
        speed = max(self.window(steps) for _ in range(3))
        self.stop()
        return speed

    def _read(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        """End its process."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    @property
    def speed(self) -> float:
        """Median tokens per second."""
        return statistics.median(window["tokens_per_s"] for window in self.windows)

    @property
    def peak(self) -> float:
        """Largest resident set, bytes."""
        return max(window["peak"] for window in self.windows)


@contextmanager
def contenders(shape: str, precision: str, setting: Setting, *, same_allocator: bool) -> Iterator[list[Contender]]:
    """Ours and both of theirs, and the end of their processes."""
    allocators = {OURS: REUSING} | dict.fromkeys((EAGER, COMPILED), REUSING if same_allocator else PLAIN)
    made = [Contender(name, shape, precision, allocator, setting) for name, allocator in allocators.items()]
    try:
        yield made
    finally:
        for contender in made:
            contender.stop()

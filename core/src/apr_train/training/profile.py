"""The trace of some steps: torch's profiler around them, and what it saw in the run's folder."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from attrs import define, field

from apr_train.atomic import replace_folder
from apr_train.errors import OutputError
from apr_train.run.events import Say
from apr_train.run.folder import PROFILE
from apr_train.run.profile_file import ITEMS, MEMORY, TRACE, ProfileItem, ProfileRecord, write_profile
from apr_train.run.profile_window import ProfileWindow
from apr_train.run.settings import RunSettings

T = TypeVar("T")

LARGEST = 10
_STEP_NAME = "training step"
_MOST_ALLOCATIONS = 100_000
"""Entries of torch's history of allocations."""


@define
class StepProfiler:
    """Traces the steps of a window, and writes what it saw when the last of them is done; a context around all steps.

    What is computed is the same; a traced step takes longer, which its line in the metrics tells as it is. A trace that cannot
    be written is told, and the run goes on.
    """

    window: ProfileWindow
    folder: Path
    """Made or replaced when the window has been traced."""
    device: torch.device
    say: Say = field(repr=False)
    _running: Any = field(default=None, init=False, repr=False)

    def around(self, step: int, take: Callable[[], T]) -> T:
        """Take a step, traced if it is in the window."""
        if step == self.window.first:
            self._start()
        if self._running is None:
            return take()
        with torch.profiler.record_function(_STEP_NAME):
            result = take()
        if step == self.window.last:
            self._finish()
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """A run that ends inside the window leaves no trace."""
        if self._running is not None:
            self._stop()
            self.say(f"no trace: the run ended before step {self.window.last}")

    def _start(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler's library writes lines of its own on stderr
        cuda = self.device.type == "cuda"
        kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
        if cuda:
            torch.cuda.memory._record_memory_history(max_entries=_MOST_ALLOCATIONS)
        self._running = torch.profiler.profile(activities=kinds, acc_events=True)
        self._running.start()

    def _stop(self) -> Any:
        running, self._running = self._running, None
        running.stop()
        return running

    def _finish(self) -> None:
        seen = self._stop()
        try:
            self._write(seen)
        except (OutputError, OSError, RuntimeError) as error:  # the last is what torch makes of a disk that is full
            self.say(f"no trace: {error}")
        else:
            first, last = self.window.first, self.window.last
            steps = f"step {first} is" if first == last else f"steps {first} to {last} are"
            self.say(f"{steps} traced in {self.folder}")

    def _write(self, seen: Any) -> None:
        """The trace, the largest items and, on CUDA, the memory: a folder that appears whole."""
        with replace_folder(self.folder) as part:
            seen.export_chrome_trace(str(part / TRACE))
            write_profile(part / ITEMS, summary(seen.key_averages(), self.window, self.device.type))
            if self.device.type == "cuda":
                write_memory(part / MEMORY)


def write_memory(path: Path) -> None:
    """torch's snapshot of the allocator as JSON: its own file would be a pickle, which nothing here writes."""
    snapshot = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(snapshot, file, default=str)


def summary(averages: Any, window: ProfileWindow, clock: str) -> ProfileRecord:
    """The largest items by their own time, on the device where there are kernels, else on the CPU.

    Args:
        averages: `key_averages()` of a profile.
    """
    own = "self_device_time_total" if clock == "cuda" else "self_cpu_time_total"
    found = [
        ProfileItem(name=item.key, calls=item.count, seconds=getattr(item, own) / 1e6)
        for item in averages
        if item.key != _STEP_NAME and getattr(item, own) > 0
    ]
    found.sort(key=lambda item: -item.seconds)
    total = sum(item.seconds for item in found)
    return ProfileRecord(first=window.first, last=window.last, clock=clock, seconds=total, items=tuple(found[:LARGEST]))


def profiler_of(settings: RunSettings, folder: Path, device: torch.device, say: Say, *, done: int) -> StepProfiler | None:
    """What traces the steps of `--profile`; None without it, and for a run that is past its first step when it goes on."""
    if settings.profile is None:
        return None
    window = ProfileWindow.parse(settings.profile)
    return StepProfiler(window, folder / PROFILE, device, say) if done < window.first else None

"""A run from its settings to its result: made ready, trained, told to its trackers, finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import Signals

import attrs
import torch
from attrs import field, frozen

from apr_train.family.plugin_module import told
from apr_train.run.events import RunEnd, RunStart, Say
from apr_train.run.folder import TRACKERS
from apr_train.run.metrics import Metrics
from apr_train.run.option import PATH, TABLES
from apr_train.run.resume import Resume
from apr_train.run.samples import Sample
from apr_train.run.settings import GROUPS, Settings
from apr_train.run.trackers import Trackers
from apr_train.training.finish import finish
from apr_train.training.loop import Outcome, train
from apr_train.training.processes import Processes
from apr_train.training.run import Run
from apr_train.training.setup import Prepared, prepare
from apr_train.training.signals import SIGNALS

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@frozen(kw_only=True)
class Trained:
    """A run that is over."""

    prepared: Prepared = field(repr=False)
    outcome: Outcome
    lines: Sequence[Metrics] = field(default=(), repr=False)
    """All of metrics.jsonl, on the first process; of a run that was stopped, none."""
    sample: Sample | None = None

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.prepared.run.folder


def run_to_its_end(
    settings: Settings,
    resume: Resume | None,
    *,
    say: Say,
    shown: bool = True,
    signals: Sequence[Signals] = SIGNALS,
    ready: Callable[[Prepared], None] = lambda _: None,
    processes: Processes | None = None,
) -> Trained:
    """Make a run ready, train it, and write its result, unless a signal stopped it.

    Args:
        settings: as `prepare` takes them.
        resume: the run to go on with.
        say: told of everything that the user should know.
        shown: whether bars and steps are drawn.
        signals: those that end the run after a step; none leaves the handlers of a host application in place.
        ready: called once all is ready, before step 0 is measured.
        processes: those that share the run; `say`, `ready`, the display and the trackers are the first one's alone.

    Raises:
        AprTrainError: whatever is wrong.
        ToldElsewhereError: of several processes, when another one says what is wrong.
    """
    processes = processes or Processes()
    shown = shown and processes.is_first
    with torch_as_before(), prepare(settings, resume, say, shown=shown, processes=processes) as prepared:
        run = prepared.run
        if processes.is_first:
            run.trackers = Trackers.named(run.settings.run.tracker, run.display.say)
            ready(prepared)
        return _followed(prepared, signals, shown)


@contextmanager
def torch_as_before() -> Iterator[None]:
    """What a run sets for the whole process is put back: threads, deterministic algorithms, the state of random generators.

    Not put back is how the C allocator keeps freed memory (`reuse_freed_memory`): it has no way to tell what was set.
    """
    threads, workspace = torch.get_num_threads(), os.environ.get(CUBLAS)
    chosen = _deterministic()
    try:
        with torch.random.fork_rng(devices=_devices_in_use()):
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if _deterministic() != chosen:  # else left alone: to set it imports torch's compiler
            torch.use_deterministic_algorithms(chosen[0], warn_only=chosen[1])
        if workspace is None:
            os.environ.pop(CUBLAS, None)


def _deterministic() -> tuple[bool, bool]:
    """Whether torch takes deterministic algorithms, and whether it only warns where there are none."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _devices_in_use() -> Sequence[int]:
    """The CUDA devices whose random generators somebody may have seeded; asking an idle one would start it."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch gives it no types
    return range(torch.cuda.device_count()) if started else ()


def _followed(prepared: Prepared, signals: Sequence[Signals], shown: bool) -> Trained:
    """Train and finish; the run's trackers are told of the start, and of the end, however it comes."""
    run = prepared.run
    if not run.step and run.processes.is_first:  # what an earlier start left, which ended before it had trained anything
        shutil.rmtree(run.folder / TRACKERS, ignore_errors=True)
    try:
        run.trackers.start(_start(run))
        trained = _trained(prepared, signals, shown)
    except KeyboardInterrupt:
        run.trackers.end(RunEnd(step=run.step, stopped_by="KeyboardInterrupt"))
        raise
    except BaseException as error:
        run.trackers.end(RunEnd(step=run.step, error=told(error)))
        raise
    result, outcome = run.folder / run.result if trained.lines else None, trained.outcome
    run.trackers.end(RunEnd(step=run.step, result=result, ended_by=outcome.ended_by, stopped_by=outcome.stopped_by))
    return trained


def _trained(prepared: Prepared, signals: Sequence[Signals], shown: bool) -> Trained:
    outcome = train(prepared.run, signals=signals)
    if outcome.stopped_by is not None:
        return Trained(prepared=prepared, outcome=outcome)
    lines, sample = finish(prepared, shown=shown)
    return Trained(prepared=prepared, outcome=outcome, lines=lines, sample=sample)


def _start(run: Run) -> Callable[[str], RunStart]:
    """What a tracker is told at the start, by its name."""
    settings, paths = {}, set()
    for group, cls in GROUPS.items():
        for item in attrs.fields(cls):
            value = getattr(getattr(run.settings, group), item.name)
            if value is not None:
                settings[f"{group}.{item.name}"] = value
                paths |= {f"{group}.{item.name}"} if item.metadata[PATH] or TABLES in item.metadata else set()

    def told_to(tracker: str) -> RunStart:
        return RunStart(
            name=run.folder.name,
            folder=run.folder,
            own=run.folder / TRACKERS / tracker,
            settings=settings,
            paths=frozenset(paths),
            done=run.step,
            say=run.display.say,
        )

    return told_to

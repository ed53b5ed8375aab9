"""`apr_train.train`: the command of the same name as a function, and the run that comes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, Unpack

from attrs import field, frozen

from apr_train.api.setting_types import TrainSettings
from apr_train.errors import RunError
from apr_train.run.asked import asked_run, named_values
from apr_train.run.events import Say
from apr_train.run.folder import ADAPTER_FOLDER, CARD, METRICS, MODEL, SAMPLES
from apr_train.run.metrics import Metrics, read_metrics
from apr_train.run.paths import user_path
from apr_train.run.progress import doing
from apr_train.run.resume import Resume
from apr_train.run.samples import Sample, read_samples
from apr_train.training.launched import launched
from apr_train.training.processes import ToldElsewhereError
from apr_train.training.signals import SIGNALS

if TYPE_CHECKING:
    from apr_train.api.models import LoadedModel
    from apr_train.preflight import Report
    from apr_train.run.settings import Settings
    from apr_train.training.setup import Prepared
    from apr_train.training.trainer import Trained

Place = str | os.PathLike[str]
Config = str | os.PathLike[str] | Mapping[str, Mapping[str, Any]]
"""Settings in tables: the path of a TOML file, or what would be in one."""

Ask = Callable[[Path | None], "tuple[Settings, Resume | None]"]
"""Gives the settings of a run and what to go on with, of the run that is named; None: of a new one."""


@frozen(kw_only=True)
class FinishedRun:
    """A run whose result is written."""

    folder: Path
    """`runs/NAME`."""
    metrics: list[Metrics] = field(repr=False)
    """All lines of metrics.jsonl: one a step, step 0 first (docs/metrics.md)."""
    path: Path
    """What it made: model.apr, or the folder of an adapter."""
    card: Path
    """MODEL_CARD.md."""
    sample: Sample | None = field(repr=False)
    """What the model wrote at the end; None for one that writes nothing."""
    notices: tuple[str, ...] = field(repr=False)
    """Everything that it said, warnings included, in order."""
    ended_by: str | None = None
    """The setting that ended it before its last step, and why, such as `--max-time 30m`; `resume` goes on."""

    @cached_property
    def model(self) -> LoadedModel:
        """The trained model, ready to call; it is read from its file when it is first asked for, and kept."""
        from apr_train.api.models import load

        return load(self.folder)

    @property
    def val_losses(self) -> dict[int, float]:
        """Step → loss on the held-out text, nats."""
        return {line.step: line.val_loss for line in self.metrics if line.val_loss is not None}


def train(
    *,
    config: Config | None = None,
    resume: Place | None = None,
    notice: Say | None = None,
    progress: bool = False,
    **settings: Unpack[TrainSettings],
) -> FinishedRun:
    """Train a model of any installed family, from a checkpoint or from scratch, and wait for its end.

    Everything is as `apr-train train` does it; only signals are left to the program around it. A KeyboardInterrupt leaves
    the run's folder whole: `resume` goes on from its last checkpoint. In a program that torchrun starts several times, all
    processes train one model together (docs/scale.md); each gets the run, the notices are those of the first one.

    Args:
        config: settings in tables, a file or a mapping; those that are given by name win.
        resume: the folder of a run to go on with, or one of its checkpoints; one that is finished is given back as it is.
        notice: called with each sentence that the command line would print; `FinishedRun.notices` has them anyway.
        progress: whether steps and bars are drawn, on the standard output and error.
        settings: each setting of docs/training.md by its name: `sequence_length`, not `--sequence-length`.

    Raises:
        AprTrainError: for whatever is wrong; every fault that can be known is in its `findings`, before anything is trained.
    """
    notices: list[str] = []

    def say(text: str) -> None:
        notices.append(text)
        if notice is not None:
            notice(text)

    def ask(path: Path | None) -> tuple[Settings, Resume | None]:
        return asked_by_name(config, path, settings, where="train")

    begun = None if resume is None else Path(user_path(os.fspath(resume)))
    try:
        ended = carry_out(ask, begun, say=say, shown=progress, signals=())
    except ToldElsewhereError as error:
        raise RunError("another process of the run has ended it, and says why") from error
    return _read_back(ended.folder, notices, None if isinstance(ended, Resume) else ended.outcome.ended_by)


def asked_by_name(
    config: Config | None, resume: Place | None, settings: Mapping[str, Any], *, where: str
) -> tuple[Settings, Resume | None]:
    """What a caller in Python asks of a run, as `asked_run` gives it; `where` is the function, for messages.

    Raises:
        ConfigError: for an unknown name, a bad value, or a file that cannot be read.
        RunError: when there is no run to go on with, or a setting differs that must not.
    """
    tables = config if config is None or isinstance(config, Mapping) else Path(user_path(os.fspath(config)))
    path = None if resume is None else Path(user_path(os.fspath(resume)))
    return asked_run(tables, path, named_values(settings, where=where))


def carry_out(
    ask: Ask,
    resume: Path | None,
    *,
    say: Say,
    shown: bool = True,
    signals: Sequence[Signals] = SIGNALS,
    ready: Callable[[Prepared], None] = lambda _: None,
    over: Callable[[Trained | Resume], None] = lambda _: None,
) -> Trained | Resume:
    """Train from settings to a result, or to where a signal stops it; together with all processes of a launcher.

    Args:
        ask: gives what `asked_run` gives, of the run to go on with.
        resume: that run, as the user named it; a launcher that starts the processes anew goes on with the one that it has.
        say: told of everything that the user should know.
        shown: whether bars and steps are drawn.
        signals: those that end the run after a step; none leaves the handlers of a host application in place.
        ready: called once all is ready, before step 0 is measured.
        over: called with what is returned, before any process ends; `say`, `ready` and `over` are the first process's alone.

    Returns:
        The run; where nothing was left to do in it, the plan for it.

    Raises:
        AprTrainError: whatever is wrong.
        ToldElsewhereError: of several processes, when another one says what is wrong.
    """
    with launched(os.environ) as processes:
        with processes.in_turn():
            asked, plan = ask(processes.begun(resume, lambda: ask(None)[0]))
            if (report := _without_torch(asked, plan)) is not None:
                report.cleared()  # raises
        ended: Trained | Resume
        if plan is not None and plan.is_finished:
            ended = plan
        else:
            with doing("starting torch", shown=shown and processes.is_first):
                from apr_train.training.trainer import run_to_its_end
            processes.connect(asked)
            ended = run_to_its_end(asked, plan, say=say, shown=shown, signals=signals, ready=ready, processes=processes)
        if processes.is_first:
            over(ended)
        processes.everyone(None)  # a launcher ends those that are left as soon as one has with another status than 0
        return ended


def judged(asked: Settings, plan: Resume | None) -> Report:
    """The preflight of a run; nothing is trained or written.

    Raises:
        PreflightError: when the source of the weights cannot be opened, with all that can be known without it.
    """
    if (report := _without_torch(asked, plan)) is not None:
        return report
    from apr_train.training.inputs import examine
    from apr_train.training.trainer import torch_as_before

    with torch_as_before(), examine(asked, plan) as examined:
        return examined.report


def _without_torch(asked: Settings, plan: Resume | None) -> Report | None:
    """The report of a new run whose family is not installed: a typing error is answered before torch is imported."""
    from apr_train.preflight.run_rules import judge_unknown_family

    return judge_unknown_family(asked) if plan is None else None


def _read_back(folder: Path, notices: Sequence[str], ended_by: str | None = None) -> FinishedRun:
    samples = read_samples(folder / SAMPLES)
    adapter = folder / ADAPTER_FOLDER
    return FinishedRun(
        folder=folder,
        metrics=read_metrics(folder / METRICS),
        path=adapter if adapter.is_dir() else folder / MODEL,
        card=folder / CARD,
        sample=samples[-1] if samples else None,
        notices=tuple(notices),
        ended_by=ended_by,
    )

"""`apr-train train`, which is also `apr-train --arch …`: train a model."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from apr_train.cli.options import FC, UserPath, asked_settings, config_option, given, setting
from apr_train.cli.usage import OptionsCommand
from apr_train.run.option import options_of
from apr_train.run.settings import GROUPS, Settings

if TYPE_CHECKING:
    from apr_train.preflight import Report
    from apr_train.run.resume import Resume
    from apr_train.training.processes import Processes


def _settings(function: FC) -> FC:
    """One option a setting, in the order of the tables."""
    for cls in reversed(GROUPS.values()):
        for item in reversed(options_of(cls)):
            function = setting(item.name, text=_help(item))(function)
    return function


def _help(item: attrs.Attribute[Any]) -> str:
    """The setting's text with its default, which no option has, so that an absent one stays out of the values."""
    text: str = item.metadata["text"]
    shown = item.default not in (None, ()) and item.metadata["kind"] is not bool
    return f"{text}  [default: {item.default}]" if shown else text


@click.command(
    "train", cls=OptionsCommand, epilog="Examples: apr-train --arch NAME --init x.apr   ·   apr-train --resume runs/NAME-x"
)
@_settings
@config_option
@click.option("--resume", type=UserPath(path_type=Path), help="Go on with a run: its folder, or one of its checkpoints.")
@click.option("--dry-run", is_flag=True, help="Only the preflight: every fault, nothing is trained or written.")
def command(config: Path | None, resume: Path | None, dry_run: bool, **values: Any) -> None:
    """Train a model of any installed family, from a checkpoint or from scratch.

    Without any other option than --arch and --init: fine-tunes on the Python standard library's own source. Every option is
    also a key of the TOML file that --config reads; the command line wins.
    """
    if dry_run:
        _dry_run(config, resume, given(values))
    else:
        _train(config, resume, given(values))


def _asked(config: Path | None, resume: Path | None, values: dict[str, Any]) -> tuple[Settings, Resume | None]:
    """The settings before any is resolved, and the run to go on with."""
    from apr_train.run.resume import plan_resume
    from apr_train.run.settings_file import stated, with_values
    from apr_train.run.settings_paths import absolute_paths

    if resume is None:
        return asked_settings(config, values), None
    wanted = (stated(config) if config is not None else {}) | values
    plan = plan_resume(resume, absolute_paths(with_values(Settings(), wanted), absent=True), set(wanted))
    return plan.settings, plan


def _dry_run(config: Path | None, resume: Path | None, values: dict[str, Any]) -> None:
    from apr_train.cli.preflight_text import print_report
    from apr_train.errors import PreflightError
    from apr_train.run.launch import Launch

    launch = Launch.of(os.environ)
    if launch is not None and launch.rank:
        return  # the first of several processes says it
    settings, plan = _asked(config, resume, values)
    report = _without_torch(settings, plan) or _judged(settings, plan)
    print_report(report)
    if report.errors:
        raise click.exceptions.Exit(PreflightError.exit_code)
    if plan is not None and plan.is_finished:
        _say_finished(plan)


def _without_torch(settings: Settings, plan: Resume | None) -> Report | None:
    """The report of a new run whose family is not installed: a typing error is answered before torch is imported."""
    from apr_train.preflight.run_rules import judge_unknown_family

    return judge_unknown_family(settings) if plan is None else None


def _judged(settings: Settings, plan: Resume | None) -> Report:
    from apr_train.training.setup import examine

    with examine(settings, plan) as examined:
        return examined.report


def _train(config: Path | None, resume: Path | None, values: dict[str, Any]) -> None:
    from apr_train.training.processes import ToldElsewhereError

    try:
        with _processes() as processes:
            _train_together(config, resume, values, processes)
    except ToldElsewhereError as error:
        raise click.exceptions.Exit(error.exit_code) from error


@contextmanager
def _processes() -> Iterator[Processes]:
    """This process and those that the launcher has started with it, if it was a launcher."""
    from apr_train.run.launch import Launch
    from apr_train.training.processes import Processes

    launch = Launch.of(os.environ)
    if launch is None:
        yield Processes()
        return
    from apr_train.training.process_group import several

    with several(launch) as processes:
        yield processes


def _train_together(config: Path | None, resume: Path | None, values: dict[str, Any], processes: Processes) -> None:
    with processes.in_turn():
        settings, plan = _asked(config, processes.begun(resume, lambda: _asked(config, None, values)[0]), values)
        if (report := _without_torch(settings, plan)) is not None:
            report.cleared()  # raises
    if plan is not None and plan.is_finished:
        if processes.is_first:
            _say_finished(plan)
        return
    processes.connect(settings)
    from apr_train.cli.output import emit_pairs
    from apr_train.training.display import closing, opening
    from apr_train.training.finish import finish
    from apr_train.training.loop import train
    from apr_train.training.setup import prepare

    with prepare(settings, plan, click.echo, processes) as prepared:
        if processes.is_first:
            emit_pairs(opening(prepared))
        outcome = train(prepared.run)
        if outcome.stopped_by is not None:
            if processes.is_first:
                emit_pairs(closing(prepared, [], outcome))
            processes.everyone(None)  # a launcher ends those that are left as soon as one has
            raise click.exceptions.Exit(130)
        lines, sample = finish(prepared)
        if not processes.is_first:
            return
        if sample is not None:
            click.echo(f"\n{sample.prompt}{click.style(sample.text, bold=True)}\n")
        emit_pairs(closing(prepared, lines, outcome))


def _say_finished(plan: Resume) -> None:
    """Say that there is nothing left to do, and how to do more; nothing of the run has been touched."""
    steps, run = plan.settings.run.steps, shlex.quote(str(plan.folder))
    click.echo(f"{plan.folder}: all {steps} steps are done and the end is written; nothing was changed")
    click.echo(f"for more steps: apr-train --resume {run} --steps {max(1, 2 * steps)}")
    click.echo(f"for another sample: apr-train generate {run}")

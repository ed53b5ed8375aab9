"""`apr-train train`, which is also `apr-train --arch …`: train a model."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from apr_train.cli.group import INTERRUPTED
from apr_train.cli.options import FC, UserPath, config_option, given, setting
from apr_train.cli.usage import OptionsCommand
from apr_train.run.option import options_of
from apr_train.run.settings import GROUPS

if TYPE_CHECKING:
    from apr_train.run.resume import Resume
    from apr_train.training.setup import Prepared
    from apr_train.training.trainer import Trained


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


def _dry_run(config: Path | None, resume: Path | None, values: dict[str, Any]) -> None:
    from apr_train.api.training import judged
    from apr_train.cli.preflight_text import print_report
    from apr_train.errors import PreflightError
    from apr_train.run.asked import asked_run
    from apr_train.run.launch import Launch

    launch = Launch.of(os.environ)
    if launch is not None and launch.rank:
        return  # the first of several processes says it
    settings, plan = asked_run(config, resume, values)
    report = judged(settings, plan)
    print_report(report)
    if report.errors:
        raise click.exceptions.Exit(PreflightError.exit_code)
    if plan is not None and plan.is_finished:
        _say_finished(plan)


def _train(config: Path | None, resume: Path | None, values: dict[str, Any]) -> None:
    from apr_train.api.training import carry_out
    from apr_train.cli.output import tell
    from apr_train.run.asked import asked_run
    from apr_train.run.resume import Resume
    from apr_train.training.processes import ToldElsewhereError

    try:
        ended = carry_out(lambda path: asked_run(config, path, values), resume, say=tell, ready=_open, over=_close)
    except ToldElsewhereError as error:
        raise click.exceptions.Exit(error.exit_code) from error
    if not isinstance(ended, Resume) and ended.outcome.stopped_by is not None:
        raise click.exceptions.Exit(INTERRUPTED)


def _open(prepared: Prepared) -> None:
    from apr_train.cli.output import emit_pairs
    from apr_train.training.display import opening

    emit_pairs(opening(prepared))


def _close(ended: Trained | Resume) -> None:
    """Say how the run has ended, or that it had before."""
    from apr_train.run.resume import Resume

    if isinstance(ended, Resume):
        _say_finished(ended)
        return
    from apr_train.cli.output import emit_pairs
    from apr_train.errors import printable
    from apr_train.training.display import closing, next_commands

    if (sample := ended.sample) is not None:
        between = "\n" if sample.kind == "chat" else ""  # an answer stands under its question
        prompt, text, suffix = (printable(part, lines=True) for part in (sample.prompt, sample.text, sample.suffix))
        click.echo(f"\n{prompt}{between}{click.style(text, bold=True)}{suffix}\n")
    emit_pairs(closing(ended.prepared, list(ended.lines), ended.outcome))
    if ended.outcome.stopped_by is None:
        click.echo("\nnext")
        for line in next_commands(ended.prepared):
            click.echo(f"  {printable(line)}")


def _say_finished(plan: Resume) -> None:
    """Say that there is nothing left to do, and how to do more; nothing of the run has been touched."""
    from apr_train.cli.output import tell

    steps, run = plan.settings.run.steps, shlex.quote(str(plan.folder))
    tell(f"{plan.folder}: all {steps} steps are done and the end is written; nothing was changed")
    tell(f"for more steps: apr-train --resume {run} --steps {max(1, 2 * steps)}")
    tell(f"for another sample: apr-train generate {run}")

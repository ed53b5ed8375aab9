"""`apr-train train`, which is also `apr-train --arch …`: train a model."""

from __future__ import annotations

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

    settings, plan = asked_run(config, resume, values)
    report = judged(settings, plan)
    print_report(report)
    if report.errors:
        raise click.exceptions.Exit(PreflightError.exit_code)
    if plan is not None and plan.is_finished:
        _say_finished(plan)


def _train(config: Path | None, resume: Path | None, values: dict[str, Any]) -> None:
    from apr_train.api.training import carry_out
    from apr_train.run.asked import asked_run

    settings, plan = asked_run(config, resume, values)
    if plan is not None and plan.is_finished:
        _say_finished(plan)
        return
    from apr_train.cli.output import emit_pairs, tell
    from apr_train.errors import printable

    ended = carry_out(settings, plan, say=tell, ready=_open)
    from apr_train.training.display import closing, next_commands  # imports torch, which a typing error does not wait for

    if (sample := ended.sample) is not None:
        between = "\n" if sample.kind == "chat" else ""  # an answer stands under its question
        prompt, text, suffix = (printable(part, lines=True) for part in (sample.prompt, sample.text, sample.suffix))
        click.echo(f"\n{prompt}{between}{click.style(text, bold=True)}{suffix}\n")
    emit_pairs(closing(ended.prepared, list(ended.lines), ended.outcome))
    if ended.outcome.stopped_by is not None:
        raise click.exceptions.Exit(INTERRUPTED)
    click.echo("\nnext")
    for line in next_commands(ended.prepared):
        click.echo(f"  {printable(line)}")


def _open(prepared: Prepared) -> None:
    from apr_train.cli.output import emit_pairs
    from apr_train.training.display import opening

    emit_pairs(opening(prepared))


def _say_finished(plan: Resume) -> None:
    """Say that there is nothing left to do, and how to do more; nothing of the run has been touched."""
    from apr_train.cli.output import tell

    steps, run = plan.settings.run.steps, shlex.quote(str(plan.folder))
    tell(f"{plan.folder}: all {steps} steps are done and the end is written; nothing was changed")
    tell(f"for more steps: apr-train --resume {run} --steps {max(1, 2 * steps)}")
    tell(f"for another sample: apr-train generate {run}")

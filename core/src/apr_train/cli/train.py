"""`apr-train train`, which is also `apr-train --arch …`: train a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click

from apr_train.run.settings import GROUPS, Settings, flag

_ALIASES = {"sequence_length": "--seq-len"}


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """One option a setting, in the order of the tables; absent ones stay out of the values."""
    for cls in reversed(GROUPS.values()):
        for item in reversed(attrs.fields(cls)):
            function = _option(item)(function)
    return function


def _option(item: attrs.Attribute[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    meta = item.metadata
    names = [flag(item.name), *([_ALIASES[item.name]] if item.name in _ALIASES else []), item.name]
    text = meta["text"]
    if meta["kind"] is bool:
        names[0] = f"{names[0]}/--no-{names[0].removeprefix('--')}"
        return click.option(*names, default=None, help=text)
    if item.default not in (None, ()):
        text += f"  [default: {item.default}]"
    kind = click.Choice(meta["choices"]) if meta["choices"] else meta["kind"]
    return click.option(*names, type=kind, multiple=meta["many"], default=None, help=text)


@click.command("train", epilog="Examples: apr-train --arch NAME --init x.apr   ·   apr-train --resume runs/NAME-x")
@_options
@click.option("--config", type=click.Path(path_type=Path), help="Settings as TOML, such as a run's config.toml.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with a run: its folder, or one of its checkpoints.")
@click.option("--dry-run", is_flag=True, help="Only the preflight: every fault, nothing is trained or written.")
def command(config: Path | None, resume: Path | None, dry_run: bool, **values: Any) -> None:
    """Train a model of any installed family, from a checkpoint or from scratch.

    Without any other option than --arch and --init: fine-tunes on the Python standard library's own source. Every option is
    also a key of the TOML file that --config reads; the command line wins.
    """
    given = {name: value for name, value in values.items() if value not in (None, ())}
    if dry_run:
        _dry_run(config, resume, given)
    else:
        _train(config, resume, given)


def _asked(config: Path | None, resume: Path | None, given: dict[str, Any]) -> tuple[Settings, Any]:
    """The settings before any is resolved, and the run to go on with."""
    from apr_train.run.resume import plan_resume
    from apr_train.run.settings_file import read_toml, stated, with_values
    from apr_train.training.defaults import absolute_paths

    if resume is None:
        return absolute_paths(with_values(read_toml(config) if config is not None else Settings(), given)), None
    wanted = (stated(config) if config is not None else {}) | given
    plan = plan_resume(resume, absolute_paths(with_values(Settings(), wanted)), set(wanted))
    return plan.settings, plan


def _dry_run(config: Path | None, resume: Path | None, given: dict[str, Any]) -> None:
    from apr_train.cli.report_text import print_report
    from apr_train.errors import PreflightError
    from apr_train.training.setup import examine

    settings, plan = _asked(config, resume, given)
    checkpoint, _, report = examine(settings, plan)
    if checkpoint is not None:
        checkpoint.close()
    print_report(report)
    if report.errors:
        raise click.exceptions.Exit(PreflightError.exit_code)


def _train(config: Path | None, resume: Path | None, given: dict[str, Any]) -> None:
    from apr_train.cli.output import emit_pairs
    from apr_train.training.finish import finish
    from apr_train.training.loop import train
    from apr_train.training.setup import prepare
    from apr_train.training.summary import closing, opening

    settings, plan = _asked(config, resume, given)
    with prepare(settings, plan, click.echo) as prepared:
        emit_pairs(opening(prepared))
        outcome = train(prepared.run)
        if outcome.stopped_by is not None:
            emit_pairs(closing(prepared, [], outcome))
            raise click.exceptions.Exit(130)
        lines, sample = finish(prepared)
        if sample is not None:
            click.echo(f"\n{sample.prompt}{click.style(sample.text, bold=True)}\n")
        emit_pairs(closing(prepared, lines, outcome))

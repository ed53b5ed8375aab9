"""The command line: `apr-train --arch …` trains; every other command is one small module beside this one."""

from __future__ import annotations

import sys

import click

from apr_train.cli.group import CommandGroup, print_version
from apr_train.cli.streams import open_closed_streams
from apr_train.run.terminal import is_plain


@click.command(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 done, 1 error, 2 wrong usage, 3 the preflight found faults, 130 interrupted.",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=print_version, help="Show the version.")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    help="Show an error's traceback, and every call of a family's hooks; works anywhere on the line.",
)
def cli() -> None:
    """Train language models of any installed family.

    `apr-train --arch NAME …` trains (see `apr-train train --help`); the other commands are named.
    """


def main() -> None:
    """Run the command line; the entry point of the `apr-train` script."""
    open_closed_streams()
    coloured = False if is_plain() else None  # None: click decides, for each stream, by whether it is a terminal
    sys.exit(cli(prog_name="apr-train", color=coloured))

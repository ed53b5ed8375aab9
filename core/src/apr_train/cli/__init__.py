"""The command line: `apr-train --arch …` trains; every other command is one small module beside this one."""

from __future__ import annotations

import os
import sys

import click

from apr_train.cli.group import CommandGroup, print_version
from apr_train.cli.streams import Streams
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
    # torch asks every installed distribution for devices beside cpu and cuda, and ends over a malformed entry_points.txt
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    streams = Streams()
    coloured = False if is_plain() else None  # None: click decides, for each stream, by whether it is a terminal
    try:
        cli(prog_name="apr-train", color=coloured)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        sys.exit(streams.close(code, trains="apr_train.training.finish" in sys.modules))

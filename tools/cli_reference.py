"""Writes docs/cli.md from the commands' own help: `make docs`, or `python tools/cli_reference.py > docs/cli.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import cast

import click
from apr_train.cli import cli
from apr_train.cli.group import CommandGroup

WIDTH = 110
"""Columns of the help text, whatever the terminal has."""
INTRODUCTION = """# The command line

Generated from `--help` by `make docs`; a test fails when it is stale. `-h` is short for `--help`, `--debug` shows the
traceback of an error and works anywhere on the line.

| exit status | meaning |
|---|---|
| 0 | done (`diff`: the same model) |
| 1 | an error, named on standard error (`diff`: a difference) |
| 2 | wrong usage (`diff`: also trouble) |
| 3 | the preflight found faults; a checkpoint that does not open is one |
| 130 | interrupted; a training run has saved and says how to go on |

A checkpoint is any of `.apr`, safetensors, GGUF, or a Hugging Face folder, told apart by content, never by the file's ending.
"""


def reference() -> str:
    """The page: one section for the program, one for each command."""
    group: CommandGroup = cli
    context = _context(group, "apr-train", None)
    names = group.list_commands(context)
    contents = " · ".join(f"[{name}](#apr-train-{name})" for name in names)
    sections = [INTRODUCTION, contents + "\n", _section("apr-train", group.get_help(context))]
    return "\n".join([*sections, *_commands(group, context, names)])


def _commands(group: CommandGroup, parent: click.Context, names: list[str]) -> Iterator[str]:
    for name in names:
        command = cast(click.Command, group.get_command(parent, name))
        yield _section(f"apr-train {name}", command.get_help(_context(command, name, parent)))


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return command.context_class(command, info_name=name, parent=parent, **settings)


def _section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(reference())

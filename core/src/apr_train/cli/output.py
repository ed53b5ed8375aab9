"""What commands print, of files too: JSON, tables, findings; coloured on a terminal, plain text in a pipe, no raw control."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

import attrs
import click

from apr_train.errors import UNPRINTABLE, Finding, printable
from apr_train.family.its_output import printed_on_stderr
from apr_train.run.terminal import broken, columns

_INDENT = 2
"""Columns in front of what continues a line."""


def tell(text: str = "", **style: Any) -> None:
    """Print a line of results, or several; what cannot be printed is spelt out, and a terminal's lines break at words.

    `style` is click's.
    """
    text = broken(printable(text, lines=True), columns(sys.stdout), indent=_INDENT)
    click.echo(click.style(text, **style) if style else text)


def say(text: str) -> None:
    """Print a message beside the results: on stderr, so that a pipe gets the results alone."""
    click.echo(broken(printable(text, lines=True), columns(sys.stderr), indent=_INDENT), err=True)


_APART = "apr_train.cli.output"


def keep_apart(context: click.Context) -> None:
    """Send what is printed to standard error, but for what `emit_json`, `emit_text` and `emit_table` print.

    A model's own code may print at any time, and standard output is the command's.
    """
    apart = context.with_resource(ExitStack())
    apart.enter_context(printed_on_stderr())
    context.meta[_APART] = apart


@contextmanager
def _own_output() -> Iterator[None]:
    """Give the command its standard output for what it prints itself."""
    context = click.get_current_context(silent=True)
    apart = None if context is None else context.meta.get(_APART)
    if apart is None:
        yield
        return
    apart.close()
    try:
        yield
    finally:
        apart.enter_context(printed_on_stderr())


def emit_text(text: str) -> None:
    """Print a part of a text that is the result: as it is into a pipe or a file, without raw controls on a terminal."""
    with _own_output():
        shown = printable(text, lines=True) if sys.stdout.isatty() else text
        click.echo(shown, nl=False, color=True)  # None would take some out


def emit_json(data: Any) -> None:
    """Print data as indented JSON; attrs objects become objects, tuples and sets become arrays, what is not finite null."""
    text = json.dumps(data, default=_plain)
    data = json.loads(text, parse_constant=lambda _: None)  # NaN and infinity, of a damaged file, are no JSON
    text = json.dumps(data, indent=2, ensure_ascii=False)
    text = UNPRINTABLE.sub(lambda found: "\n" if found[0] == "\n" else json.dumps(found[0])[1:-1], text)
    with _own_output():
        click.echo(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Finding):
        return value.to_dict()
    if attrs.has(type(value)):
        return {item.name: getattr(value, item.name) for item in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not JSON-able")


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table: with rich on a terminal, else aligned columns that nothing wraps or cuts."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    with _own_output():
        if sys.stdout.isatty():
            _rich_table(columns, cells, title)
            return
        if title:
            tell(title)
        for line in _aligned([list(columns), *cells]):
            click.echo(line)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    words = [_longest_word([column, *cells]) for column, *cells in zip(columns, *rows, strict=True)]
    if sum(words) + 2 * (len(words) - 1) > console.width:
        _records(columns, rows, title)
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, width in zip(columns, words, strict=True):
        table.add_column(column, overflow="fold", min_width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a `[` in a value is no markup
    console.print(table)


def _longest_word(texts: Iterable[str]) -> int:
    return max(len(word) for text in texts for word in (text.split() or [""]))


def _records(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    """A table whose words do not fit side by side, row by row: a name that is cut in two cannot be copied."""
    blocks = []
    for row in rows:
        pairs = dict(zip(columns[1:], row[1:], strict=True))
        lines = _aligned([[f"  {key}", value] for key, value in pairs.items()])
        blocks.append("\n".join([click.style(row[0], bold=True), *lines]))
    click.echo("\n".join([title, ""] if title else []) + "\n\n".join(blocks))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def emit_pairs(pairs: Mapping[str, object], *, title: str | None = None) -> None:
    """Print `key  value` lines, the keys padded to one width."""
    if title:
        tell(title, bold=True)
    shown = [(printable(str(key)), printable(str(value))) for key, value in pairs.items()]
    width = max((len(key) for key, _ in shown), default=0)
    for key, value in shown:
        click.echo(broken(f"{key.ljust(width)}  {value}", columns(sys.stdout), indent=width + 2))


def emit_findings(findings: Iterable[Finding], *, err: bool = True) -> None:
    """Print each finding on a line of its own, errors first."""
    for finding in sorted(findings, key=lambda finding: finding.severity != "error"):
        colour = "red" if finding.severity == "error" else "yellow"
        severity, text = finding.severity, broken(f"{finding.severity} {finding}", columns(_stream(err)), indent=_INDENT)
        click.echo(f"{click.style(severity, fg=colour, bold=True)}{text.removeprefix(severity)}", err=err)


def _stream(err: bool) -> TextIO:
    return sys.stderr if err else sys.stdout

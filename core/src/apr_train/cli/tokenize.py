"""`apr-train tokenize`: the tokens of a run, made before it. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apr_train.cli.options import FC, UserPath, config_option, given, json_option, setting
from apr_train.cli.output import emit_json, emit_table, say, tell
from apr_train.run.option import options_of
from apr_train.run.settings import DataSettings

if TYPE_CHECKING:
    from apr_train.artifact.tokenized import Row, Shown

_MODEL = ("arch", "init", "preset", "vocab_size", "tokenizer", "rope_layout", "chat_template", "objective")
_RUN = ("device", "seed")
EPILOG = """Examples: apr-train tokenize --init x.apr --data src   ·   apr-train tokenize --config run.toml --show 2   ·
apr-train tokenize --tokenizer tokenizer.json --data code=src --data docs=docs -o tokens"""


def _settings(function: FC) -> FC:
    """The options of a run that decide its tokens."""
    for name in reversed((*_MODEL, *(item.name for item in options_of(DataSettings)), *_RUN)):
        text = "The run's, cpu or cuda: it decides the length of a row." if name == "device" else None
        function = setting(name, text=text)(function)
    return function


@click.command("tokenize", epilog=EPILOG)
@_settings
@config_option
@click.option("--show", type=click.IntRange(min=1), metavar="N", help="Print N documents of each source, and what is a target.")
@click.option("-o", "--output", type=UserPath(path_type=Path, file_okay=False), help="Also write shards (.bin) into a folder.")
@json_option()
def command(config: Path | None, show: int | None, output: Path | None, as_json: bool, **values: Any) -> None:
    """Make the tokens of a run ahead of it: with the same settings it finds them in the cache and encodes nothing.

    Takes the options of `train` that decide the tokens. Prints a line for each source: its files, documents and tokens,
    the bytes of text a token stands for, what is held out and what is left out.
    """
    from apr_train.artifact.targets import check_folder
    from apr_train.artifact.tokenized import COMMAND, documents_shown, rows_of, to_json, tokenize, write_tokens
    from apr_train.run.asked import asked_settings
    from apr_train.run.progress import stage_bars

    settings = asked_settings(config, given(values))
    if output is not None:
        check_folder(output, (), COMMAND)  # before the work, and again when its sources are known
    with stage_bars() as progress:
        tokenized = tokenize(settings, device=settings.run.device or "cpu", progress=progress, say=say)
    rows, shown = rows_of(tokenized.corpus), list(documents_shown(tokenized, show or 0))
    if as_json:
        emit_json(to_json(rows, shown, tokenized.corpus))
    else:
        _print(rows, shown)
    if output is not None:
        names = write_tokens(tokenized, output)
        say(f"{output}: {len(names)} shards, tokenizer.json, and run.toml for apr-train --config {output}/run.toml")


def _print(rows: list[Row], shown: list[Shown]) -> None:
    columns = ("source", "kind", "files", "documents", "tokens", "targets", "held out", "bytes a token", "left out", "counted")
    emit_table(columns, [_cells(row) for row in rows])
    for item in shown:
        of = "" if item.source is None else f" of {item.source}"
        tell(f"\ndocument {item.number}{of}: {len(item.ids):,} tokens, {sum(item.learn):,} targets; ⟦…⟧ is read, not learnt")
        tell("".join(text if learn else f"⟦{text}⟧" for learn, text in item.parts))


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (f"{number:,}" for number in (row.files, row.documents, row.tokens, row.targets, row.held_out))
    size = "–" if row.bytes_per_token is None else f"{row.bytes_per_token:.2f}"
    told = (", ".join(f"{number:,} {name}" for name, number in of.items()) or "–" for of in (row.left_out, row.counted))
    return (row.source or "–", row.kind, *numbers, size, *told)

"""`apr-train check`: the preflight alone, on a file or for a run from scratch. Imports torch only for `--device`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apr_train.cli.options import json_option, setting, tokenizer_option
from apr_train.cli.output import emit_json

if TYPE_CHECKING:
    from apr_train.checkpoint.header import Header, RopeRows, TokenizerSpec
    from apr_train.errors import Finding
    from apr_train.preflight import Report

FAULTS = 3
"""Exit status when there is an error among the findings."""


@click.command("check")
@click.argument("file", required=False, metavar="[FILE]")
@setting("arch")
@setting("preset", text="Without FILE: a preset of the family.")
@setting("vocab_size", limits=True, text="Without FILE: another vocabulary than the preset's.")
@tokenizer_option
@click.option("--corpus", metavar="PATH", help="An already tokenised corpus (a token file of the cache): its largest id.")
@setting("objective")
@setting("sequence_length")
@setting("batch_size", limits=True, default=1, show_default=True)
@setting("rope_layout")
@setting("device", text="cpu or cuda: also choose the attention backend and estimate memory.")
@setting("precision", text="Arithmetic of the run.", default="fp32", show_default=True)
@setting("attention")
@setting("out", type=click.Path(path_type=Path), text="Folder that the run would write into.")
@json_option("Print the report as JSON (docs/preflight.md).")
def command(file: str | None, as_json: bool, **options: Any) -> None:
    """Run the preflight: every fault of a run, before it starts.

    Reads the header of FILE (.apr, safetensors, GGUF, or a Hugging Face folder), never its tensors. Without FILE the
    run is from scratch. Exit status: 0 nothing wrong (warnings allowed), 3 faults found.
    """
    if file is not None and (options["preset"] or options["vocab_size"]):
        raise click.UsageError("--preset and --vocab-size are for a run from scratch, without FILE.")
    report = check(file, **options)
    if as_json:
        emit_json(report.to_dict())
    else:
        from apr_train.cli.preflight_text import print_report

        print_report(report)
    click.get_current_context().exit(FAULTS if report.errors else 0)


def check(
    file: str | None, *, tokenizer: str | None, corpus: str | None, rope_layout: RopeRows | None, **settings: Any
) -> Report:
    """Open what can be opened, judge everything, and add what could not be opened."""
    import attrs

    from apr_train.family.registry import Registry
    from apr_train.preflight import PreflightInput, preflight

    header, unopened = _open(file, rope_layout)
    spec, unusable = _tokenizer(tokenizer)
    largest, damaged = _largest_id(corpus)
    if unopened:
        return _closed_report(unopened + unusable + damaged)
    asked = PreflightInput(registry=Registry.discover(), header=header, tokenizer=spec, corpus_max_id=largest, **settings)
    report = preflight(asked)
    return attrs.evolve(report, findings=(*unusable, *damaged, *report.findings))


def _open(file: str | None, rope_layout: RopeRows | None) -> tuple[Header | None, list[Finding]]:
    if file is None:
        return None, []
    from apr_train.checkpoint.open import open_checkpoint
    from apr_train.errors import FormatError
    from apr_train.preflight import opening_finding

    try:
        with open_checkpoint(file, verify=False, rope_layout=rope_layout) as checkpoint:
            return checkpoint.header, []
    except FormatError as error:
        return None, [opening_finding(error)]


def _tokenizer(path: str | None) -> tuple[TokenizerSpec | None, list[Finding]]:
    if path is None:
        return None, []
    from apr_train.checkpoint.open import open_tokenizer
    from apr_train.errors import AprTrainError
    from apr_train.preflight import tokenizer_finding

    try:
        return open_tokenizer(path), []
    except AprTrainError as error:
        return None, [tokenizer_finding(error)]


def _largest_id(path: str | None) -> tuple[int | None, list[Finding]]:
    if path is None:
        return None, []
    from apr_train.checkpoint.files import open_regular
    from apr_train.data.tokens import HEADER_SIZE, DamagedTokenFile, unpack_header
    from apr_train.errors import DataError, FormatError
    from apr_train.preflight import corpus_finding

    try:
        with open_regular(path) as file:
            return unpack_header(file.read(HEADER_SIZE)).max_token_id, []
    except (DamagedTokenFile, FormatError, OSError) as error:
        return None, [corpus_finding(DataError(f"not a tokenised corpus: {error}", where=path))]


def _closed_report(findings: list[Finding]) -> Report:
    """Nothing but the file's own fault can be known of a file that does not open."""
    from apr_train.preflight import Report, Skipped

    return Report(findings=tuple(findings), skipped=(Skipped("every rule about the file's content", "the file does not open"),))

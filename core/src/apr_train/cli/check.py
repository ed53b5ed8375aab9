"""`apr-train check`: the preflight alone, on a file or for a run from scratch. Imports torch only for `--device`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from apr_train.cli.options import json_option, setting, tokenizer_option
from apr_train.cli.output import emit_json

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
    from apr_train.api.checking import check

    report = check(file, **options)
    if as_json:
        emit_json(report.to_dict())
    else:
        from apr_train.cli.preflight_text import print_report

        print_report(report)
    click.get_current_context().exit(FAULTS if report.errors else 0)

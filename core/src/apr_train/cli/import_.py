"""`apr-train import`: GGUF or Hugging Face to `.apr`. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from apr_train.api.options import FLOATS
from apr_train.cli.options import output_option, setting, verify_option

if TYPE_CHECKING:
    from apr_train.checkpoint.header import RopeRows

DTYPE = "Type of all tensors; keep: as stored, blocks too. Default: floats as stored, blocks as f32 (exact, and larger)."


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@output_option("The .apr file to write.", folder=False)
@setting("arch")
@click.option("--dtype", type=click.Choice((*FLOATS, "keep")), help=DTYPE)
@setting("rope_layout")
@verify_option("Check the checksum of an .apr source.")
def command(
    source: Path,
    output: Path,
    arch: str | None,
    dtype: Literal["f32", "f16", "bf16", "keep"] | None,
    rope_layout: RopeRows | None,
    verify: bool,
) -> None:
    """Convert SOURCE (GGUF, a safetensors file, a Hugging Face folder) to .apr."""
    from apr_train.api.conversion import convert
    from apr_train.cli.conversion import describe_result, say_unverified
    from apr_train.cli.output import emit_findings

    say_unverified(verify=verify)
    done = convert(
        source,
        output,
        arch=arch,
        dtype=dtype,
        rope_layout=rope_layout,
        verify=verify,
        warn=emit_findings,
        progress=True,
    )
    describe_result(done)

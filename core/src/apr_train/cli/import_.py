"""`apr-train import`: GGUF or Hugging Face to `.apr`. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_train.cli.options import dtype_option, output_option, setting, verify_option
from apr_train.run.progress import progress_bar

if TYPE_CHECKING:
    from apr_train.artifact.convert import Dtype
    from apr_train.checkpoint.header import RopeRows

DTYPE = "Type of all tensors; keep: as stored, blocks too. Default: floats as stored, blocks as f32 (exact, and larger)."


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@output_option("The .apr file to write.", folder=False)
@setting("arch")
@dtype_option("f32", "f16", "bf16", "keep", text=DTYPE)
@setting("rope_layout")
@verify_option("Check the checksum of an .apr source.")
def command(
    source: Path, output: Path, arch: str | None, dtype: Dtype | None, rope_layout: RopeRows | None, verify: bool
) -> None:
    """Convert SOURCE (GGUF, a safetensors file, a Hugging Face folder) to .apr."""
    from apr_train.artifact.convert import import_to_apr
    from apr_train.cli.conversion import describe_result, prepared

    with prepared(source, arch=arch, rope_layout=rope_layout, verify=verify) as conversion:
        total = conversion.nbytes
        with progress_bar(f"writing {output.name}", total) as progress:
            moves = import_to_apr(conversion, output, dtype=dtype, progress=progress)
        describe_result(conversion, moves, output)

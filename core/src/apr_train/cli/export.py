"""`apr-train export`: `.apr` to a Hugging Face folder. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_train.cli.options import dtype_option, output_option, setting, verify_option
from apr_train.run.progress import progress_bar

if TYPE_CHECKING:
    from apr_train.artifact.convert import Dtype
    from apr_train.checkpoint.header import RopeRows


@click.command("export")
@click.argument("source", type=click.Path(path_type=Path))
@output_option("The folder to write.", folder=True)
@setting("arch")
@dtype_option("f32", "f16", "bf16", text="Type of all tensors. Default: floats as stored, blocks as f32.")
@setting("rope_layout")
@click.option(
    "--shard-size", type=click.IntRange(min=1), default=5_000_000_000, show_default=True, help="Bytes of weights per file."
)
@verify_option("Check the .apr file's checksum.")
def command(
    source: Path,
    output: Path,
    arch: str | None,
    dtype: Dtype | None,
    rope_layout: RopeRows | None,
    shard_size: int,
    verify: bool,
) -> None:
    """Convert SOURCE (.apr, or any checkpoint) to a folder that transformers loads."""
    from apr_train.artifact.export import export_to_folder
    from apr_train.cli.conversion import describe_result, prepared

    with prepared(source, arch=arch, rope_layout=rope_layout, verify=verify) as conversion:
        total = conversion.nbytes
        with progress_bar(f"writing {output.name}", total) as progress:
            moves = export_to_folder(conversion, output, dtype=dtype, shard_size=shard_size, progress=progress)
        describe_result(conversion, moves, output)

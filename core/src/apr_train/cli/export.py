"""`apr-train export`: `.apr` to a Hugging Face folder. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import click

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


@click.command("export")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to write.")
@click.option("--arch", help="The family, when none or several claim the file.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Type of all tensors. Default: floats as stored, blocks as f32.")
@click.option(
    "--rope-layout",
    type=click.Choice(["split-half", "adjacent"]),
    help="Order of the rows of q and k, for a file that does not say.",
)
@click.option(
    "--shard-size", type=click.IntRange(min=1), default=5_000_000_000, show_default=True, help="Bytes of weights per file."
)
@click.option("--verify/--no-verify", default=True, help="Check the .apr file's checksum.")
def command(
    source: Path, output: Path, arch: str | None, dtype: str | None, rope_layout: str | None, shard_size: int, verify: bool
) -> None:
    """Convert SOURCE (.apr, or any checkpoint) to a folder that transformers loads."""
    from apr_train.artifact.export import export_to_folder
    from apr_train.cli.conversion import describe_result, prepared
    from apr_train.cli.progress import progress_bar

    with prepared(source, arch=arch, rope_layout=rope_layout, verify=verify) as conversion:
        total = sum(conversion.header.tensors[entry.checkpoint].nbytes for entry in conversion.plan.loads)
        with progress_bar(f"writing {output.name}", total) as progress:
            moves = export_to_folder(
                conversion,
                output,
                dtype=DTYPES.get(dtype or ""),  # type: ignore[arg-type] # the choices are Dtype's
                shard_size=shard_size,
                progress=progress,
            )
        describe_result(conversion, moves, output)

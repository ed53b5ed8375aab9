"""`apr-train import`: GGUF or Hugging Face to `.apr`. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import click

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "keep": "keep"}


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .apr file to write.")
@click.option("--arch", help="The family, when none or several claim the file.")
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    help="Type of all tensors; keep: as stored, blocks too. Default: floats as stored, blocks as f32 (exact, and larger).",
)
@click.option(
    "--rope-layout",
    type=click.Choice(["split-half", "adjacent"]),
    help="Order of the rows of q and k, for a file that does not say.",
)
@click.option("--verify/--no-verify", default=True, help="Check the checksum of an .apr source.")
def command(source: Path, output: Path, arch: str | None, dtype: str | None, rope_layout: str | None, verify: bool) -> None:
    """Convert SOURCE (GGUF, a safetensors file, a Hugging Face folder) to .apr."""
    from apr_train.artifact.convert import import_to_apr
    from apr_train.cli.conversion import describe_result, prepared
    from apr_train.cli.progress import progress_bar

    with prepared(source, arch=arch, rope_layout=rope_layout, verify=verify) as conversion:
        total = sum(conversion.header.tensors[entry.checkpoint].nbytes for entry in conversion.plan.loads)
        with progress_bar(f"writing {output.name}", total) as progress:
            moves = import_to_apr(conversion, output, dtype=DTYPES.get(dtype or ""), progress=progress)  # type: ignore[arg-type] # the choices are Dtype's
        describe_result(conversion, moves, output)

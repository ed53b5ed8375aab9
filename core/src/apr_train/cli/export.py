"""`apr-train export`: any checkpoint to a Hugging Face folder, or to a GGUF file. Imports no torch, but to measure blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_train.api.options import BLOCKS, BY_LLAMA_CPP, FLOATS
from apr_train.cli.options import UserPath, setting, verify_option
from apr_train.cli.output import emit_findings, tell
from apr_train.run.progress import progress_bar

if TYPE_CHECKING:
    from apr_train.artifact.convert import Conversion
    from apr_train.artifact.gguf.export import GgufResult
    from apr_train.checkpoint.header import RopeRows

EPILOG = """Examples: apr-train export x.apr -o for-transformers/   ·   apr-train export runs/NAME -o x.gguf --format gguf
--dtype q8_0"""


@click.command("export", epilog=EPILOG)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=UserPath(path_type=Path), help="The folder, or the .gguf file, to write.")
@click.option(
    "--format", "kind", type=click.Choice(("hf", "gguf")), default="hf", show_default=True, help="hf: a folder; gguf: a file."
)
@setting("arch")
@click.option(
    "--dtype",
    type=click.Choice((*FLOATS, *BLOCKS, *BY_LLAMA_CPP)),
    help="Type of all tensors (gguf: of the matrices; blocks only there). Default: floats as stored, blocks as f32.",
)
@setting("rope_layout")
@click.option("--shard-size", type=click.IntRange(min=1), help="hf: bytes of weights per file.  [default: 5000000000]")
@verify_option("Check the .apr file's checksum; gguf: compare what was written with SOURCE, too.")
def command(
    source: Path,
    output: Path,
    kind: str,
    arch: str | None,
    dtype: str | None,
    rope_layout: RopeRows | None,
    shard_size: int | None,
    verify: bool,
) -> None:
    """Convert SOURCE (.apr, or any checkpoint) to a folder that transformers loads, or to a GGUF file for llama.cpp.

    A GGUF is opened again and compared before it is put in its place: floats must be identical; of blocks the perplexity and
    the share of equal most likely tokens on apr-train's reference text are printed, and put into the card beside the file.
    """
    from apr_train.api.conversion import write_folder, write_gguf
    from apr_train.artifact.conversion import opened_conversion
    from apr_train.cli.conversion import describe_result, say_unverified

    if kind == "hf" and dtype not in (None, *FLOATS):
        raise click.UsageError(f"--dtype {dtype} is only with --format gguf: a folder holds {', '.join(FLOATS)}.")
    if kind == "gguf" and shard_size is not None:
        raise click.UsageError("--shard-size is only with --format hf: a GGUF is one file.")
    say_unverified(verify=verify)
    with opened_conversion(
        source, arch=arch, rope_layout=rope_layout, verify=verify, warn=emit_findings, bar=progress_bar
    ) as conversion:
        if kind == "gguf":
            result = write_gguf(conversion, output, dtype, verify=verify, bar=progress_bar)
            emit_findings(result.plan.warnings)
            _describe(conversion, result, output, dtype)
        else:
            describe_result(write_folder(conversion, output, dtype, shard_size, bar=progress_bar))


def _describe(conversion: Conversion, result: GgufResult, output: Path, dtype: str | None) -> None:
    """Say what was written, what stayed in another type, and how it was compared."""
    from apr_train.artifact.gguf.card import sentences

    plan = result.plan
    types = result.comparison.types if result.comparison else {}
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(types.items())) or "types not looked at"
    tell(f"{output}: {len(plan.tensors)} tensors ({kinds}), {plan.architecture}, family {conversion.family.name}")
    if dtype is not None and dtype not in BY_LLAMA_CPP:
        for name, kept in plan.kept(dtype.upper()).items():
            more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
            tell(f"as {name} instead: {', '.join(kept[:3])}{more}")
    tell(f"rows of q and k: {sum(move.reorders for move in plan.moves.values())} tensors were reordered")
    tell(f"tokenizer: {plan.metadata.get('tokenizer.ggml.pre', 'none in the source')}")
    tell(f"compared with its source: {'; '.join(sentences(result.comparison, result.proof))}")
    if result.comparison and result.comparison.quantised and result.proof is None:
        tell("not measured: perplexity and agreement, since the source has no tokenizer to read a text with")
    tell(f"card: {result.card}")

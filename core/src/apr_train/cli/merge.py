"""`apr-train merge`: a base and its adapter to one `.apr`. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_train.cli.options import UserPath, dtype_option, output_option, setting, verify_option
from apr_train.run.progress import progress_bar

if TYPE_CHECKING:
    from apr_train.artifact.convert import Dtype
    from apr_train.artifact.merge import MergedCheckpoint
    from apr_train.checkpoint.header import RopeRows


@click.command(
    "merge", epilog="Examples: apr-train merge runs/NAME -o x.apr   ·   apr-train merge ADAPTER --base BASE -o x.apr"
)
@click.argument("adapter", type=UserPath(path_type=Path))
@click.option("--base", type=UserPath(path_type=Path), help="The checkpoint that the adapter is for. Default: the run's own.")
@output_option("The .apr file to write.", folder=False)
@setting("arch")
@dtype_option("f32", "f16", "bf16", text="Type of all tensors. Default: floats as in the base, blocks as f32.")
@setting("rope_layout")
@verify_option("Check the checksum of an .apr base.")
def command(
    adapter: Path,
    base: Path | None,
    output: Path,
    arch: str | None,
    dtype: Dtype | None,
    rope_layout: RopeRows | None,
    verify: bool,
) -> None:
    """Merge ADAPTER into its base: W + s·B·A, one tensor at a time, in float32, rounded to the base's types.

    ADAPTER is a run that trained adapters, one of its checkpoints, or a folder as peft's save_pretrained writes it. The
    result is a model like every other: generate, eval, export and --init take it.
    """
    from apr_train.artifact.conversion import converted
    from apr_train.artifact.convert import import_to_apr, plan_conversion
    from apr_train.artifact.merge import base_remarks
    from apr_train.cli.conversion import describe_result
    from apr_train.cli.output import emit_findings
    from apr_train.family.registry import Registry

    with _opened(adapter, base, arch=arch, rope_layout=rope_layout, verify=verify) as merged:
        emit_findings((*merged.header.findings, *base_remarks(merged)))
        conversion = plan_conversion(merged, Registry.discover(), arch=arch)
        emit_findings(conversion.warnings)
        with progress_bar(f"writing {output.name}", conversion.nbytes) as progress:
            moves = import_to_apr(conversion, output, dtype=dtype, progress=progress)
        click.echo(f"merged: {len(merged.changed)} of {len(merged.header.tensors)} tensors")
        describe_result(converted(conversion, moves, output))


@contextmanager
def _opened(
    adapter: Path, base: Path | None, *, arch: str | None, rope_layout: RopeRows | None, verify: bool
) -> Iterator[MergedCheckpoint]:
    """The base with the adapter in it; without `--base`, that of the run in which the adapter lies.

    Raises:
        FormatError: ADAPTER-002 where nothing says which base is meant.
    """
    from apr_train.artifact.merge import base_is_wanted, merged_checkpoint, merged_run
    from apr_train.run.adapted import adapted_run

    if base is None:
        merged = merged_run(adapter, verify=verify)
        if merged is None:
            raise base_is_wanted(adapter)
    else:
        found = adapted_run(adapter)
        folder, tokenizer = (adapter, None) if found is None else (found.adapter, found.tokenizer)
        merged = merged_checkpoint(folder, base, rope_layout=rope_layout, arch=arch, tokenizer=tokenizer, verify=verify)
    with merged:
        yield merged

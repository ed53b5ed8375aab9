"""`apr-train validate`: every fault of a checkpoint file. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_train.cli.options import json_option
from apr_train.cli.output import emit_findings, emit_json, tell
from apr_train.errors import Finding
from apr_train.run.progress import progress_bar

if TYPE_CHECKING:
    from apr_train.checkpoint.header import Header


@click.command("validate")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--data", is_flag=True, help="Look at every value for NaN and infinity too.")
@json_option()
@click.pass_context
def command(context: click.Context, path: Path, data: bool, as_json: bool) -> None:
    """Check a checkpoint file, byte for byte: structure, extents, alignment, overlaps, checksums.

    PATH is an .apr file, a shard or its manifest, a safetensors or GGUF file, or a Hugging Face folder; only .apr has
    checksums. Exits with 1 when there is a fault.
    """
    header, findings = _examine(path, data)
    valid = not any(finding.severity == "error" for finding in findings)
    if as_json:
        emit_json({"path": str(path), "valid": valid, "format": header and header.format, "findings": findings})
    else:
        emit_findings(findings)
        if header is not None and valid:
            tell(f"{path}: valid {header.format}, {_scope(header, data)}")
    if not valid:
        context.exit(1)


def _scope(header: Header, data: bool) -> str:
    checksum = "structure and checksums" if header.format == "apr" else "structure (this format has no checksums)"
    return f"{len(header.tensors)} tensors; checked: {checksum}{', every value' if data else ''}"


def _examine(path: Path, data: bool) -> tuple[Header | None, list[Finding]]:
    """The header (None when the structure is at fault) and every finding."""
    from apr_train import rules
    from apr_train.checkpoint.open import open_checkpoint
    from apr_train.checkpoint.validation import validate
    from apr_train.errors import FormatError

    try:
        with open_checkpoint(path, verify=False, whole=False) as checkpoint:
            total = sum(tensor.nbytes for tensor in checkpoint.header.tensors.values())
            with progress_bar(f"validating {path.name}", total) as advance:
                return checkpoint.header, validate(checkpoint, data=data, progress=advance)
    except FormatError as error:
        return None, [error.under(rules.APR_STRUCTURE)]

"""`apr-train inspect`: what a checkpoint says about itself, in any format. Reads no tensor, imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from apr_train.checkpoint.header import Header
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.cli.options import json_option

SCHEMA_VERSION = 1


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@json_option()
@click.option("--tensors", is_flag=True, help="List every tensor.")
def command(file: Path, as_json: bool, tensors: bool) -> None:
    """Show FILE's header: architecture, config, tokenizer, tensors, and which families claim it."""
    from apr_train.checkpoint.open import open_checkpoint
    from apr_train.cli.output import emit_findings, emit_json, emit_pairs, emit_table, tell

    with open_checkpoint(file, verify=False, whole=False) as checkpoint:
        header = checkpoint.header
        emit_findings(header.findings)
    found = header_facts(header, claimed_by(header), with_tensors=tensors)
    if as_json:
        emit_json(found)
        return
    emit_pairs(_summary(found), title=str(file))
    parts = {"config": header.config, "provenance": header.provenance, "reference loss": header.extra.get(REFERENCE)}
    for title, part in parts.items():
        if isinstance(part, Mapping) and part:
            tell()
            emit_pairs({key: _short(value) for key, value in sorted(part.items())}, title=title)
    if found["tokenizer"]:
        tell()
        emit_pairs({key: _short(value) or "none" for key, value in found["tokenizer"].items()}, title="tokenizer")
    if tensors:
        tell()
        rows = [(item["name"], item["dtype"], item["shape"], item["bytes"]) for item in found["tensors"]]
        emit_table(("tensor", "dtype", "shape", "bytes"), rows)


def claimed_by(header: Header) -> list[str]:
    """The installed families that say the file is theirs."""
    from apr_train.family.registry import Registry

    return [family.name for family in Registry.discover().claimants(header)]


def header_facts(header: Header, claimants: list[str], *, with_tensors: bool) -> dict[str, Any]:
    """A header as JSON-able data."""
    found: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "path": header.path,
        "format": header.format,
        "class": header.hf_class,
        "architecture": header.architecture,
        "families": claimants,
        "parameters": header.parameter_count,
        "bytes": sum(tensor.nbytes for tensor in header.tensors.values()),
        "tensor_count": len(header.tensors),
        "dtypes": dict(sorted(Counter(tensor.dtype for tensor in header.tensors.values()).items())),
        "names": header.names,
        "rope_rows": header.rope_rows,
        "tie": {"value": header.tie.value, "reason": header.tie.reason},
        "config": dict(sorted(header.config.items())),
        "tokenizer": _tokenizer(header),
        "provenance": dict(header.provenance),
        "reference": header.extra.get(REFERENCE),
    }
    if with_tensors:
        found["tensors"] = [
            {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.nbytes}
            for tensor in header.tensors.values()
        ]
    return found


def _tokenizer(header: Header) -> dict[str, Any] | None:
    spec = header.tokenizer
    if spec is None:
        return None
    return {
        "kind": spec.model,
        "size": spec.size,
        "pre_type": spec.pre_type,
        "added_tokens": len(spec.added_tokens),
        "special_ids": dict(spec.special_ids),
        "chat_template": spec.chat_template is not None,
        "origin": spec.origin,
        "notes": list(spec.notes),
    }


def _summary(found: dict[str, Any]) -> dict[str, str]:
    tie = found["tie"]
    decided = {True: "tied", False: "untied", None: "undecided"}[tie["value"]]
    return {
        "format": found["format"],
        "class": found["class"] or "not given",
        "architecture": found["architecture"] or "not given",
        "families": ", ".join(found["families"]) or "none claims it",
        "parameters": f"{found['parameters']:,} in {found['tensor_count']} tensors, {found['bytes']:,} bytes",
        "dtypes": ", ".join(f"{count} {name}" for name, count in found["dtypes"].items()) or "none",
        "rows of q and k": found["rope_rows"] or "not said: --rope-layout will be asked for",
        "head": f"{decided} ({tie['reason']})",
    }


def _short(value: Any) -> str:
    if isinstance(value, dict):
        text = ", ".join(f"{key} {item}" for key, item in value.items())
    elif isinstance(value, list):
        text = "; ".join(map(str, value))
    else:
        text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."

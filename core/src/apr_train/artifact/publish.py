"""Publishing: a model whose licence and data are known, as the folder that one uploads; written whole or not at all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from apr_train.artifact.apr_file import open_apr_file
from apr_train.artifact.card import markdown
from apr_train.artifact.convert import Conversion, Dtype, keeps_values, plan_conversion
from apr_train.artifact.export import fill_folder
from apr_train.artifact.hub_card import SUMS, HubNames, Publication, card_of
from apr_train.artifact.provenance import spdx_expression
from apr_train.artifact.targets import check_folder, check_own, mark, sha256
from apr_train.atomic import replace_folder
from apr_train.checkpoint.apr import AprReader
from apr_train.checkpoint.checkpoint import Progress
from apr_train.checkpoint.given_name import given_name
from apr_train.checkpoint.reference import reference_of
from apr_train.errors import ConfigError
from apr_train.family.registry import Registry
from apr_train.run.folder import MODEL, STATE, run_of
from apr_train.run.provenance import RUN_KEY
from apr_train.run.record import Record, read_record

CARDS = ("README.md", "MODEL_CARD.md")
"""One text under two names: the Hub's, and the one that a run's folder has."""
REQUIRED = {"license": "SPDX", "data_source": "TEXT", "data_license": "SPDX"}
"""Metadata keys without which nothing is published, and what `stamp` takes for each."""
COMMAND = "publish"
_CHUNK = 1 << 20


def publish(
    source: Path,
    target: Path,
    registry: Registry,
    *,
    names: HubNames | None = None,
    arch: str | None = None,
    dtype: Dtype | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write `.apr`, Hugging Face files, tokenizer, card and checksums of one model; returns the names of the files.

    Args:
        source: an `.apr` file with licence and data provenance.
        target: a folder that is not there yet, or an earlier publication.
        registry: the installed families.
        names: what the card says beyond what the file knows.
        arch: the family, when none or several claim the file.
        dtype: type of the tensors in the safetensors; None: floats as stored, blocks as F32.
        progress: told of bytes that were copied or converted; twice the size of the tensors in all.

    Raises:
        ConfigError: a licence or the data's provenance is missing, with the command that sets it.
        FormatError: not an `.apr` file, or a damaged one.
        PreflightError: tensors that do not fit the family.
        RunError: the run's folder, in which the file lies, is damaged.
        OutputError: the folder holds the file, or is no earlier publication, or cannot be written.
    """
    with open_apr_file(source, in_shards="a model in shards is not published as it is") as checkpoint:
        check_provenance(checkpoint.header.provenance, source)
        artifact = f"{source.stem}.apr"
        check_folder(target, checkpoint.files, COMMAND)
        conversion = plan_conversion(checkpoint, registry, arch=arch)
        publication = _publication(conversion, checkpoint, source, target, names or HubNames())
        card = markdown(card_of(attrs.evolve(publication, exact=keeps_values(conversion.moves(dtype)))))
        with replace_folder(target) as folder:
            fill_folder(conversion, folder, dtype=dtype, progress=progress)
            _copy(source, folder / artifact, progress)
            for name in CARDS:
                (folder / name).write_text(card, encoding="utf-8")
            mark(folder, COMMAND, to_come=[SUMS])
            written = sorted(str(item.relative_to(folder)) for item in folder.rglob("*") if item.is_file())
            (folder / SUMS).write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in written), encoding="utf-8")
            if target.is_dir():
                check_own(target, COMMAND)  # again: writing takes its time, and somebody may have put a file there
    return [*written, SUMS]


def check_provenance(provenance: Mapping[str, Any], path: Path) -> None:
    """Refuse a model that does not say whose it is and what it was made of.

    Raises:
        ConfigError: with the command that sets what is missing.
    """
    missing = [key for key in REQUIRED if not str(provenance.get(key) or "").strip()]
    if missing:
        options = " ".join(f"--{key.replace('_', '-')} {REQUIRED[key]}" for key in missing)
        raise ConfigError(
            f"a model without {' and '.join(missing)} is not published",
            where=path,
            hint=f"Set what is missing: apr-train stamp {shlex.quote(str(path))} {options}",
        )
    for key in ("license", "data_license"):
        try:
            spdx_expression(str(provenance[key]), where=f"{path} [{key}]")
        except ConfigError as error:
            again = f"Set it: apr-train stamp {shlex.quote(str(path))} --{key.replace('_', '-')} SPDX"
            raise error.amend(hint=f"{error.finding.hint} {again}".strip()) from error


def _publication(conversion: Conversion, checkpoint: AprReader, source: Path, target: Path, names: HubNames) -> Publication:
    origin = checkpoint.raw_metadata.get(RUN_KEY)
    origin = origin if isinstance(origin, dict) else {}
    return Publication(
        title=str(conversion.header.provenance.get("name") or given_name(target)),
        artifact=f"{source.stem}.apr",
        conversion=conversion,
        names=names,
        origin=origin,
        reference=reference_of(checkpoint.raw_metadata, source),
        record=record_of(source, origin.get("step")),
    )


def record_of(artifact: Path, step: object) -> Record | None:
    """The run whose result or checkpoint a file is, up to the file's step; None for a file that lies elsewhere.

    Raises:
        RunError: the run's folder is damaged.
    """
    real = artifact.resolve()
    run = run_of(real)
    belongs = real.name == MODEL and (real.parent == run or (real.parent / STATE).is_file())
    if run is None or not belongs or not isinstance(step, int):
        return None
    record = read_record(run)
    lines = tuple(line for line in record.lines if line.step <= step)
    return attrs.evolve(record, lines=lines, samples=tuple(sample for sample in record.samples if sample.step <= step))


def _copy(source: Path, target: Path, progress: Progress | None) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        while piece := reading.read(_CHUNK):
            writing.write(piece)
            if progress is not None:
                progress(len(piece))

"""Write the folder, as a whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from apr_train.artifact.card import model_card
from apr_train.artifact.convert import Conversion, Dtype, prepare
from apr_train.artifact.export import fill_folder, is_written
from apr_train.artifact.provenance import what_to_give
from apr_train.artifact.published import Subject, Wishes, check_provenance, record_of
from apr_train.atomic import replace_folder
from apr_train.checkpoint.apr import AprReader, open_apr
from apr_train.errors import FormatError, OutputError
from apr_train.family.registry import Registry

Progress = Callable[[int], None]
SUMS = "SHA256SUMS"
CARDS = ("README.md", "MODEL_CARD.md")
"""One text under two names: the Hub's, and the one that a run's folder has."""
RUN_KEY = "apr_train.run"
_CHUNK = 1 << 20


def publish(
    source: Path,
    target: Path,
    registry: Registry,
    *,
    wishes: Wishes | None = None,
    arch: str | None = None,
    dtype: Dtype | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write `.apr`, Hugging Face files, tokenizer, card and checksums of one model; returns the names of the files.

    Args:
        source: an `.apr` file with licence and data provenance.
        target: a folder that is not there yet, or an earlier publication.
        registry: the installed families.
        wishes: what the card says beyond what the file knows.
        arch: the family, when none or several claim the file.
        dtype: type of the tensors in the safetensors; None: floats as stored, blocks as F32.
        progress: told of bytes that were copied or converted; twice the size of the tensors in all.

    Raises:
        ConfigError: a licence or the data's provenance is missing, with the command that sets it.
        FormatError: not an `.apr` file, or a damaged one.
        PreflightError: tensors that do not fit the family.
        OutputError: the folder holds other files, or cannot be written.
    """
    with _open(source) as checkpoint:
        check_provenance(checkpoint.header.provenance, source)
        artifact = f"{source.stem}.apr"
        _check_target(target, artifact)
        conversion = prepare(checkpoint, registry, arch=arch)
        subject = _subject(conversion, checkpoint, source, target, wishes or Wishes())
        with replace_folder(target) as folder:
            fill_folder(conversion, folder, dtype=dtype, progress=progress)
            _copy(source, folder / artifact, progress)
            for name in CARDS:
                (folder / name).write_text(model_card(subject), encoding="utf-8")
            names = sorted(item.name for item in folder.iterdir())
            (folder / SUMS).write_text("".join(f"{_sha256(folder / name)}  {name}\n" for name in names), encoding="utf-8")
    return [*names, SUMS]


def _open(source: Path) -> AprReader:
    try:
        checkpoint = open_apr(source)
    except FormatError as error:
        raise error.amend(hint=error.finding.hint or what_to_give(error, source) or "") from error
    if isinstance(checkpoint, AprReader):
        return checkpoint
    checkpoint.close()
    hint = "Import it into one file first: apr-train import SRC -o X.apr."
    raise FormatError("a model in shards is not published as it is", path=source, hint=hint)


def _subject(conversion: Conversion, checkpoint: AprReader, source: Path, target: Path, wishes: Wishes) -> Subject:
    origin = checkpoint.raw_metadata.get(RUN_KEY)
    origin = origin if isinstance(origin, dict) else {}
    record = record_of(source, origin.get("step"))
    ended = record is not None and record.folder == source.resolve().parent
    return Subject(
        title=str(conversion.header.provenance.get("name") or target.resolve().name),
        artifact=f"{source.stem}.apr",
        conversion=conversion,
        wishes=wishes,
        origin=origin,
        record=record,
        sample=record.card.sample if record is not None and record.card is not None and ended else None,
    )


def _check_target(target: Path, artifact: str) -> None:
    """An earlier publication may be replaced; a folder with anything else in it may not."""
    if not target.is_dir():
        return
    mine = {*CARDS, SUMS, artifact}
    other = [item.name for item in target.iterdir() if item.name not in mine and not is_written(item)]
    if other or (any(target.iterdir()) and not (target / SUMS).is_file()):
        raise OutputError(
            "the folder is not an earlier publication",
            where=target,
            found=", ".join(sorted(other)[:4]) or f"no {SUMS}",
            hint="Give a folder that does not exist yet.",
        )


def _copy(source: Path, target: Path, progress: Progress | None) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        while piece := reading.read(_CHUNK):
            writing.write(piece)
            if progress is not None:
                progress(len(piece))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

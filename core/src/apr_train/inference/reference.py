"""The reference loss of a checkpoint: measured on the package's text, compared with what the file says, written into it."""

from __future__ import annotations

import math
from typing import Literal

from attrs import field, frozen

from apr_train import rules
from apr_train.artifact.provenance import stamp_reference
from apr_train.checkpoint.apr import AprReader, Flags, ShardedReader
from apr_train.checkpoint.checkpoint import Checkpoint, Progress
from apr_train.checkpoint.reference import ReferenceLoss, reference_of
from apr_train.data.reference import reference_rows
from apr_train.errors import Finding, FormatError, OutputError
from apr_train.inference.evaluate import Measurement, measure
from apr_train.inference.ready import Opened, Ready
from apr_train.preflight.reference_rules import incomparable, other_loss
from apr_train.run.events import Say

PRECISION = "fp32"
"""What a file holds is computed in; a start in another precision is compared with it."""
DEVICE = "cpu"
"""Where it is computed unless the user says otherwise."""
Write = Literal["new", "always", "never"]
"""When a number is written: where the file holds no other one, always, or never."""


@frozen(kw_only=True)
class Place:
    """The file that a reference loss goes into, as it was when its weights were opened."""

    path: str
    identity: tuple[int, ...]
    obstacle: str | None
    """Why nothing can be written into it."""
    held: ReferenceLoss | None
    """What it says already."""


@frozen(kw_only=True)
class ReferenceResult:
    """What came of a measurement."""

    measured: Measurement
    reference: ReferenceLoss
    held: ReferenceLoss | None
    """What the file said before."""
    finding: Finding | None = field(repr=False)
    """How that differs, or why the two cannot be compared."""
    written: bool
    """Whether the file holds the number now."""
    not_written: str | None
    """Why not."""

    @property
    def agrees(self) -> bool | None:
        """Whether the file said the same; None where it said nothing that can be compared."""
        if self.held is None or (self.finding is not None and self.finding.rule != rules.REFERENCE_001):
            return None
        return self.finding is None


def place_of(examined: Opened, *, say: Say) -> Place:
    """Look at the file, while it is open; `say` is told of a note in it that cannot be read."""
    checkpoint, header = examined.checkpoint, examined.header
    try:
        held = reference_of(header.extra, header.path)
    except FormatError as error:
        say(f"warning: {error}")
        held = None
    obstacle = _obstacle(checkpoint)
    if examined.wanted.tokenizer is not None:
        obstacle = "it was measured with --tokenizer, not with the tokenizer in the file"
    identity = checkpoint.identity if isinstance(checkpoint, AprReader) else ()
    return Place(path=header.path, identity=identity, obstacle=obstacle, held=held)


def _obstacle(checkpoint: Checkpoint) -> str | None:
    if isinstance(checkpoint, ShardedReader):
        return "a model in shards is not changed; apr-train import makes one file of it"
    if not isinstance(checkpoint, AprReader):
        return "only an .apr file holds it; apr-train import makes one"
    return "the file is signed: a note would break its signature" if checkpoint.flags & Flags.SIGNED else None


def measure_reference(ready: Ready, place: Place, *, write: Write, progress: Progress | None = None) -> ReferenceResult:
    """Measure, compare, and write; what cannot be written is told in the result. `progress` is told of bytes copied.

    Raises:
        DataError: the text is not the one of this version.
        TokenizerError: the tokenizer lacks a token that the objective needs.
    """
    rows = reference_rows(ready.objective, ready.tokenizer, positions=ready.config.usable_positions)
    measured = measure(ready, rows.batches())
    found = rows.result(measured.loss, precision=ready.precision.name)
    finding = None if place.held is None else _compared(found, place.held, ready, incomparable(place.held, rows, place.path))
    obstacle = _unfit(ready, found) or place.obstacle or _unwanted(place.held, finding, write)
    written = obstacle is None and (place.held == found or _is_kept(place.held, finding, write))
    if obstacle is None and not written:
        try:
            stamp_reference(place.path, found, identity=place.identity, progress=progress)
            written = True
        except (FormatError, OutputError) as error:
            obstacle = str(error)
    return ReferenceResult(
        measured=measured, reference=found, held=place.held, finding=finding, written=written, not_written=obstacle
    )


def _compared(found: ReferenceLoss, held: ReferenceLoss, ready: Ready, other: Finding | None) -> Finding | None:
    how = {"device": ready.device.type, "precision": ready.precision.name}
    return other or other_loss(found.loss, held, ready.header.path, **how)


def _is_kept(held: ReferenceLoss | None, finding: Finding | None, write: Write) -> bool:
    """Whether the file says so already: a number that only differs by how sums were ordered is not written again."""
    return held is not None and finding is None and write != "always"


def _unfit(ready: Ready, found: ReferenceLoss) -> str | None:
    """Why this number says nothing about the file."""
    if ready.loaded.fresh:
        return f"the file does not have {', '.join(ready.loaded.fresh)}"
    if not math.isfinite(found.loss):
        return "the loss is not a number"
    if ready.precision.name != PRECISION:
        return f"it was measured in {ready.precision.name}; a file holds that of {PRECISION}"
    return None


def _unwanted(held: ReferenceLoss | None, finding: Finding | None, write: Write) -> str | None:
    if write == "never":
        return "--no-write"
    if write == "new" and held is not None and finding is not None:
        return "the file holds another number; --write puts this one in its place"
    return None

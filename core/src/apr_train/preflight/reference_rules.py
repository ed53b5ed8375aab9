"""The reference loss that a file holds: whether it can be compared, and whether weights that were loaded have it."""

from __future__ import annotations

import math

import attrs

from apr_train import rules
from apr_train.checkpoint.header import Header
from apr_train.checkpoint.reference import KEY, ReferenceLoss, reference_of
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.reference import OTHER_IDS, ReferenceRows, most_apart, reference_rows
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import AprTrainError, Finding
from apr_train.preflight.report import Report
from apr_train.run.settings import Settings

CAUSES = (
    "The file may have been measured with another version of the family or with other config values, its weights may have been"
    " changed or trained since, or this family computes something else"
)
_ANEW = "apr-train eval FILE --reference --write writes the number anew"


def reference_findings(header: Header | None, report: Report, settings: Settings) -> list[Finding]:
    """Of the file of `--init`: that its reference loss can be read, and is of the tokenizer that the run will have.

    Where the user gives another tokenizer, or trains all the same (`--allow-cold-init`), it is a warning.
    """
    if header is None or KEY not in header.extra:
        return []
    try:
        held = reference_of(header.extra, header.path)
        rows = _rows(report)
    except AprTrainError as error:
        return [error.under(rules.REFERENCE_002, header.path)]
    if held is None or rows is None:
        return []
    meant = settings.model.tokenizer is not None or settings.run.allow_cold_init
    found = incomparable(held, rows, header.path)
    return [] if found is None else [attrs.evolve(found, severity="warning") if meant else found]


def _rows(report: Report) -> ReferenceRows | None:
    """The reference text as the run would read it; None where another finding says why it cannot."""
    broken = any(finding.rule == rules.PREFLIGHT_018 for finding in report.findings)
    if report.tokenizer is None or report.objective is None or report.config is None or broken:
        return None
    try:
        tokenizer = build_tokenizer(report.tokenizer)
    except AprTrainError:
        return None  # separator_findings says why
    return reference_rows(OBJECTIVES[report.objective], tokenizer, positions=report.config.usable_positions)


def incomparable(held: ReferenceLoss, rows: ReferenceRows, subject: str) -> Finding | None:
    """REFERENCE-002 for a number that was measured on other ids, another text or other rows; an error where the ids differ.

    Other ids mean that the file's own tokenizer is not the one that its weights were measured with. Another text is another
    version's, and rows have another length where a config has other positions: neither says anything against the file.
    """
    different = rows.difference(held)
    if different is None:
        return None
    name, theirs, ours = different
    ids = name == OTHER_IDS
    hint = f"The tokenizer is not the one that was measured: see where it comes from; if it is meant, {_ANEW}."
    return Finding(
        rule=rules.REFERENCE_002,
        subject=subject,
        field=KEY,
        problem=f"the file's reference loss cannot be compared: it was measured on {name}",
        expected=str(theirs),
        found=str(ours),
        hint=hint if ids else f"To have one that can be: {_ANEW}.",
        severity="error" if ids else "warning",
    )


def other_loss(loss: float, held: ReferenceLoss, subject: str, *, device: str, precision: str) -> Finding | None:
    """REFERENCE-001 for weights that do not have the loss that their file holds; `device` is a type, such as `cpu`."""
    most = most_apart(held, device=device, precision=precision)
    if abs(loss - held.loss) <= most:  # False for NaN
        return None
    return Finding(
        rule=rules.REFERENCE_001,
        subject=subject,
        field=KEY,
        problem="the weights do not have the reference loss that the file says",
        expected=f"{held.loss:.6f} ± {most:.6f} in {precision} on {device}",
        found=f"{loss:.6f}" if math.isfinite(loss) else "not a number",
        hint=f"{CAUSES}. Where the new number is right, {_ANEW}.",
    )

"""A file that cannot be opened, as a finding like every other."""

from __future__ import annotations

from pathlib import Path

from apr_train.errors import AprTrainError, FormatError
from apr_train.finding import Finding

MISSING_FILE = "FALSIFY-APR-PRETRAIN-INIT-003"
BAD_FILE = "FALSIFY-APR-PRETRAIN-INIT-004"


def opening_finding(error: FormatError) -> Finding:
    """INIT-003 for a file that is not there, INIT-004 for one that is not what it should be."""
    exists = Path(error.path).exists()
    return Finding(
        id=BAD_FILE if exists else MISSING_FILE,
        where=error.where or error.path,
        problem=error.problem,
        expected="" if error.expected is None else str(error.expected),
        found="" if error.found is None else str(error.found),
        hint=error.hint or "",
    )


def tokenizer_finding(error: AprTrainError) -> Finding:
    """A tokenizer that cannot be used, the rest of the check notwithstanding."""
    return Finding(
        id="PREFLIGHT-018",
        where=error.where or "--tokenizer",
        problem=error.problem,
        expected="" if error.expected is None else str(error.expected),
        found="" if error.found is None else str(error.found),
        hint=error.hint or "",
    )

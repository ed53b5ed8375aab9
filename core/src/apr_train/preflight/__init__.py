"""Every fault of a run at once, before anything is spent. See docs/preflight.md; importing this needs no torch."""

from apr_train.preflight.judge import preflight
from apr_train.preflight.opening import (
    corpus_finding,
    opening_finding,
    tokenizer_finding,
)
from apr_train.preflight.report import PreflightInput, Report, Skipped

__all__ = [
    "PreflightInput",
    "Report",
    "Skipped",
    "corpus_finding",
    "opening_finding",
    "preflight",
    "tokenizer_finding",
]

"""A file that cannot be opened, and any other exception that is a finding like every other."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from apr_train.errors import AprTrainError, FormatError
from apr_train.finding import Finding
from apr_train.formats.hf_folder import tokenizer_of
from apr_train.formats.json_text import parse_json
from apr_train.formats.tokenizer_json import spec_from_json
from apr_train.tokenizer_spec import TokenizerSpec

MISSING_FILE = "FALSIFY-APR-PRETRAIN-INIT-003"
BAD_FILE = "FALSIFY-APR-PRETRAIN-INIT-004"
CORPUS_ID = "PREFLIGHT-012"
BAD_TOKENIZER = "PREFLIGHT-018"
TIE = "PREFLIGHT-007"
ROPE_ROWS = "PREFLIGHT-008"
BY_FIELD = {"rope rows": ROPE_ROWS, "tie_word_embeddings": TIE}
"""Field of a FormatError → the rule about it, where that is another than the file's being bad."""


def error_finding(rule: str, error: AprTrainError, where: str = "") -> Finding:
    """The error's parts under a rule's id; `where` stands in when the error does not say."""
    return Finding(
        id=rule,
        where=error.where or where,
        problem=error.problem,
        expected="" if error.expected is None else str(error.expected),
        found="" if error.found is None else str(error.found),
        hint=error.hint or "",
    )


def opening_finding(error: FormatError) -> Finding:
    """INIT-003 for a file that is not there, INIT-004 for one that is not what it should be."""
    there = os.path.exists(error.path)  # noqa: PTH110  # Path's raises for a name that is too long
    finding = error_finding(BAD_FILE if there else MISSING_FILE, error, error.path)
    if error.field in BY_FIELD:
        return attrs.evolve(finding, id=BY_FIELD[error.field])
    rule, separator, problem = finding.problem.partition(": ")
    # the readers put the rule's id before the message, for those who see the exception alone
    return attrs.evolve(finding, id=rule, problem=problem) if separator and rule in (BAD_FILE, MISSING_FILE) else finding


def tokenizer_finding(error: AprTrainError) -> Finding:
    """A tokenizer that cannot be used, the rest of the check notwithstanding."""
    return error_finding(BAD_TOKENIZER, error, "--tokenizer")


def corpus_finding(error: AprTrainError) -> Finding:
    """A tokenised corpus that cannot be read."""
    return error_finding(CORPUS_ID, error, "--corpus")


def read_tokenizer(path: Path) -> TokenizerSpec:
    """The tokenizer that `--tokenizer` names: a `tokenizer.json` (with the settings beside it), or a folder with one.

    Raises:
        FormatError: when there is none, or it is not one.
    """
    try:
        folder = path if path.is_dir() else path.parent
        found = tokenizer_of(folder, {}) if path.is_dir() or path.name == "tokenizer.json" else None
        return found if found is not None else spec_from_json(parse_json(path), str(path))
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", path=path) from error

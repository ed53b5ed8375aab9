"""A file that cannot be opened, and any other exception that is a finding like every other."""

from __future__ import annotations

import os
from pathlib import Path

from apr_train import rules
from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.checkpoint.huggingface import tokenizer_of
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.errors import AprTrainError, Finding, FormatError


def opening_finding(error: FormatError) -> Finding:
    """INIT-003 for a file that is not there, INIT-004 for one that is not what it should be, unless the reader knows better."""
    there = os.path.exists(error.finding.subject)  # noqa: PTH110  # Path's raises for a name that is too long
    return error.under(rules.INIT_004 if there else rules.INIT_003)


def tokenizer_finding(error: AprTrainError) -> Finding:
    """A tokenizer that cannot be used, the rest of the check notwithstanding."""
    return error.under(rules.PREFLIGHT_018, "--tokenizer")


def corpus_finding(error: AprTrainError) -> Finding:
    """A tokenised corpus that cannot be read."""
    return error.under(rules.PREFLIGHT_012, "--corpus")


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

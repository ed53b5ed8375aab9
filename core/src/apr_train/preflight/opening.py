"""Opening what a run starts from, the checkpoint and the tokenizer; a file that does not open is a finding like every other."""

from __future__ import annotations

import os
import shlex

import attrs

from apr_train import rules
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.header import Header, RopeRows, TokenizerSpec
from apr_train.checkpoint.open import open_checkpoint, open_tokenizer
from apr_train.checkpoint.tie import resolve_tie
from apr_train.errors import AprTrainError, Finding, FormatError, PreflightError
from apr_train.run.adapted import adapted_run


def opening_finding(error: FormatError) -> Finding:
    """INIT-003 for a file that is not there, INIT-004 for one that is not what it should be, unless the reader knows better."""
    there = os.path.exists(error.finding.subject)  # noqa: PTH110  # Path's raises for a name that is too long
    return error.under(rules.INIT_004 if there else rules.INIT_003)


def tokenizer_finding(error: AprTrainError) -> Finding:
    """A tokenizer that cannot be used, the rest of the check notwithstanding."""
    return attrs.evolve(error.under(rules.PREFLIGHT_018, "--tokenizer"), rule=rules.PREFLIGHT_018)


def corpus_finding(error: AprTrainError) -> Finding:
    """A tokenised corpus that cannot be read."""
    return error.under(rules.PREFLIGHT_012, "--corpus")


def open_source(path: str, rope_layout: RopeRows | None = None) -> Checkpoint:
    """Open the checkpoint that weights come from; `rope_layout` is the user's word on the order of the rows of q and k.

    Raises:
        PreflightError: INIT-003 or INIT-004, or PREFLIGHT-008 when the file says another order.
    """
    try:
        return open_checkpoint(path, rope_layout=rope_layout)
    except FormatError as error:
        raise PreflightError([_of_adapters(path) or opening_finding(error)]) from error


def _of_adapters(path: str) -> Finding | None:
    """What is said of a run that trained adapters and is named as a model."""
    try:
        found = adapted_run(path)
    except AprTrainError as error:
        return error.under(rules.PREFLIGHT_020)
    if found is None:
        return None
    return Finding(
        rule=rules.PREFLIGHT_020,
        subject=path,
        problem="the run trained an adapter, which is not a whole model",
        expected="a model whose adapter is merged into it",
        found=f"an adapter for {found.base}",
        hint=f"Merge them: apr-train merge {shlex.quote(path)} -o X.apr, then give X.apr.",
    )


def tied_header(checkpoint: Checkpoint) -> Header:
    """The header with the tie decided, by comparing two tensors if it must be.

    Raises:
        PreflightError: PREFLIGHT-007, when the metadata says tied and the file has a head of its own.
    """
    try:
        return resolve_tie(checkpoint)
    except FormatError as error:
        raise PreflightError([opening_finding(error)]) from error


def given_tokenizer(path: str) -> TokenizerSpec:
    """The tokenizer of `--tokenizer`.

    Raises:
        PreflightError: PREFLIGHT-018, when the file is none.
    """
    try:
        return open_tokenizer(path)
    except AprTrainError as error:
        raise PreflightError([tokenizer_finding(error)]) from error

"""On which rows of which text a model is measured: those of the training's own validation, unless something else is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen

from apr_train.data.batch import Batch
from apr_train.data.corpus import Corpus, load_corpus
from apr_train.data.protocols import Progress
from apr_train.data.stream import validation_batches
from apr_train.errors import PreflightError
from apr_train.family.config import ModelConfig
from apr_train.inference.ready import Ready, Say
from apr_train.preflight.surroundings import sequence_findings
from apr_train.preflight.token_rules import corpus_findings
from apr_train.run.corpus_settings import CorpusSettings
from apr_train.run.folder import CONFIG
from apr_train.run.paths import run_of
from apr_train.run.settings import Settings
from apr_train.run.settings_file import read_toml
from apr_train.training.defaults import BATCH, ROW


@frozen(kw_only=True)
class Rows:
    """The held-out rows of a corpus, and how they are cut."""

    corpus: CorpusSettings
    sequence_length: int
    batch_size: int
    batches: int | None
    """None: every held-out row."""
    document_mask: bool
    mask_probability: float


def settings_of(paths: Sequence[str]) -> tuple[Settings, Path | None]:
    """The settings of the first of the checkpoints' runs, and that run; a new run's settings if none is of a run.

    Raises:
        ConfigError: when the run's config.toml is damaged.
    """
    run = next((run for path in paths if (run := run_of(path)) is not None), None)
    return (Settings(), None) if run is None else (read_toml(run / CONFIG), run)


def rows_for(settings: Settings, given: Mapping[str, Any], *, config: ModelConfig, device: torch.device) -> Rows:
    """The run's rows, with what the user gave on top, and a training's own defaults for the rest.

    Raises:
        ConfigError: for a value out of range.
    """
    chosen = {name: value for name, value in given.items() if name != "batches"}
    data = attrs.evolve(settings.data, **chosen)
    batches = given.get("batches", data.val_batches)
    return Rows(
        corpus=data.corpus,
        sequence_length=data.sequence_length or min(ROW[device.type], config.usable_positions),
        batch_size=data.batch_size or BATCH[device.type],
        batches=batches or None,
        document_mask=data.document_mask,
        mask_probability=data.mask_probability,
    )


def check_rows(rows: Rows, config: ModelConfig) -> None:
    """Refuse rows that the model has no positions for.

    Raises:
        PreflightError: PREFLIGHT-009.
    """
    findings = sequence_findings(rows.sequence_length, config)
    if findings:
        raise PreflightError(findings)


def corpus_for(rows: Rows, ready: Ready, *, progress: Progress | None, say: Say) -> Corpus:
    """The tokenised corpus, of which every id fits the model.

    Raises:
        DataError: when the text cannot be read.
        PreflightError: when a token lies outside the model's vocabulary.
    """
    corpus = load_corpus(rows.corpus, ready.tokenizer, progress=progress, notice=say)
    findings = corpus_findings(corpus.max_token_id, ready.config)
    if findings:
        raise PreflightError(findings)
    return corpus


def batches_for(rows: Rows, ready: Ready, corpus: Corpus) -> Iterator[Batch]:
    """The batches to measure on, the same ones each time.

    Raises:
        DataError: when there is nothing to predict.
        TokenizerError: when the objective needs a special token that the tokenizer does not have.
    """
    return validation_batches(
        corpus.validation,
        objective=ready.objective,
        sequence_length=rows.sequence_length,
        batch_size=rows.batch_size,
        tokenizer=ready.tokenizer,
        document_mask=rows.document_mask,
        mask_probability=rows.mask_probability,
        max_rows=None if rows.batches is None else rows.batches * rows.batch_size,
    )

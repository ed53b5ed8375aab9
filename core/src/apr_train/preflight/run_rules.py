"""The preflight of a training run: what `check` asks, and the text, the run's name and the separator of documents."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import attrs

from apr_train import rules
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.header import Header
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.sources import require_text
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import AprTrainError, DataError, Finding, PreflightError, RunError
from apr_train.family.registry import Registry
from apr_train.preflight.judge import preflight
from apr_train.preflight.opening import given_tokenizer, tied_header
from apr_train.preflight.report import PreflightInput, Report
from apr_train.run.folder import checkpoints, require_unused
from apr_train.run.resume import Resume
from apr_train.run.settings import ModelSettings, RunSettings, Settings

T = TypeVar("T")


def checkpoints_to_come(run: RunSettings, resume: Resume | None = None) -> int:
    """How many checkpoints lie there at one time on top of those that do now, the one that is being written included."""
    done = 0 if resume is None or resume.checkpoint is None else resume.checkpoint.step
    if done >= run.steps:
        return 0
    every = run.save_every or run.steps
    left = -(-run.steps // every) - done // every
    there = 0 if resume is None else len(checkpoints(resume.folder))
    return min(left, max(1, run.keep + 1 - there)) if run.keep else left


def machine_findings(settings: Settings, resume: Resume | None = None) -> list[Finding]:
    """The text of `--data` is there; of a new run, the name is free, and nothing but the file says what `--init` is."""
    texts = [finding for item in settings.data.data for finding in _text_findings(item)]
    return texts if resume is not None else [*texts, *_name_findings(settings.run), *_preset_findings(settings.model)]


def _text_findings(item: str) -> list[Finding]:
    try:
        require_text(item)
    except DataError as error:
        return [error.under(rules.PREFLIGHT_019, "--data")]
    return []


def _name_findings(run: RunSettings) -> list[Finding]:
    if run.run is None or not os.path.isdir(folder := Path(run.out, run.run)):  # noqa: PTH112  # Path's raises for a long name
        return []
    try:
        require_unused(folder)
    except RunError as error:
        return [error.under(rules.PREFLIGHT_013)]
    return []


def _preset_findings(model: ModelSettings) -> list[Finding]:
    if model.init is None:
        return []
    given = {"--preset": model.preset, "--vocab-size": model.vocab_size}
    return [
        Finding(
            rule=rules.ARCH_003,
            subject=option,
            problem="with --init the config comes from the file, never from a preset",
            expected=f"no {option}",
            found=str(value),
            hint="Leave it out, or leave out --init to train from scratch.",
        )
        for option, value in given.items()
        if value is not None
    ]


def separator_findings(report: Report) -> list[Finding]:
    """Of the tokenizer: that it can be built, and has a token to end a document with."""
    tokenizer, objective = report.tokenizer, report.objective
    if tokenizer is None or objective is None or any(finding.rule == rules.PREFLIGHT_018 for finding in report.findings):
        return []
    try:
        OBJECTIVES[objective].document_ends(build_tokenizer(tokenizer))
    except AprTrainError as error:
        return [error.under(rules.PREFLIGHT_018, tokenizer.origin)]
    return []


def collected(find: Callable[[], T]) -> tuple[T | None, tuple[Finding, ...]]:
    """What a function finds, or nothing and its findings: one fault must not hide the next."""
    try:
        return find(), ()
    except PreflightError as error:
        return None, error.findings


def judge_run(
    settings: Settings, checkpoint: Checkpoint | None, *, device: str, precision: str, resume: Resume | None = None
) -> tuple[Header | None, Report]:
    """Every finding about a training run, before it costs anything; raises none of them. The header has its tie decided."""
    model, data, run = settings.model, settings.data, settings.run
    header, contradiction = collected(lambda: None if checkpoint is None else tied_header(checkpoint))
    if header is None and checkpoint is not None:
        header = checkpoint.header
    tokenizer, unusable = collected(lambda: None if model.tokenizer is None else given_tokenizer(model.tokenizer))
    report = preflight(
        PreflightInput(
            registry=Registry.discover(),
            header=header,
            arch=model.arch,
            preset=model.preset,
            vocab_size=model.vocab_size,
            objective=model.objective,
            tokenizer=tokenizer,
            sequence_length=data.sequence_length,
            batch_size=data.batch_size or 1,
            out=Path(run.out, run.run or "") if resume is None else resume.folder,
            checkpoints=checkpoints_to_come(run, resume),
            device=device,
            precision=precision,
            attention=model.attention,
            document_mask=data.document_mask,
            needs_tokenizer=model.tokenizer is None,
        )
    )
    findings = (*contradiction, *unusable, *machine_findings(settings, resume), *separator_findings(report))
    return header, attrs.evolve(report, findings=(*findings, *report.findings))

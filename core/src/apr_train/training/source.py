"""What a run starts from: the checkpoint, the family, the tokenizer, judged by the preflight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import attrs

from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.header import Header, RopeRows, TokenizerSpec
from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.tie import resolve_tie
from apr_train.data.bpe import train_bpe
from apr_train.data.protocols import Notice
from apr_train.errors import AprTrainError, Finding, FormatError, PreflightError
from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family
from apr_train.family.registry import Registry
from apr_train.model.acceleration import make_deterministic
from apr_train.model.device import choose_device, default_precision
from apr_train.preflight import (
    PreflightInput,
    Report,
    opening_finding,
    preflight,
    read_tokenizer,
    tokenizer_finding,
)
from apr_train.preflight.machine_rules import device_findings
from apr_train.preflight.run_rules import checkpoints_to_come, outside_findings, separator_findings
from apr_train.preflight.token_rules import corpus_findings, no_tokenizer
from apr_train.run.identity import read_identity
from apr_train.run.resume import Resume
from apr_train.run.settings import RunSettings, Settings

T = TypeVar("T")


def machine(run: RunSettings) -> tuple[str, str]:
    """Device and precision by name, as asked for or chosen; a device that is not here is left for the preflight to find."""
    if run.device is not None and device_findings(run.device):
        return run.device, run.precision or "fp32"
    device = choose_device(run.device)
    return str(device), run.precision or default_precision(device)


def open_source(path: str | None, rope_layout: str | None = None) -> Checkpoint | None:
    """Open the checkpoint that the weights come from; None for a run from scratch.

    Raises:
        PreflightError: FALSIFY-APR-PRETRAIN-INIT-003 or -004.
    """
    if path is None:
        return None
    try:
        return open_checkpoint(path, rope_layout=cast(RopeRows | None, rope_layout))
    except FormatError as error:
        raise PreflightError([opening_finding(error)]) from error


def tied_header(checkpoint: Checkpoint | None) -> Header | None:
    """The header with the tie decided, by comparing two tensors if it must be.

    Raises:
        PreflightError: PREFLIGHT-007, when the metadata says tied and the file has a head of its own.
    """
    try:
        return None if checkpoint is None else resolve_tie(checkpoint)
    except FormatError as error:
        raise PreflightError([opening_finding(error)]) from error


def given_tokenizer(settings: Settings) -> TokenizerSpec | None:
    """The tokenizer of `--tokenizer`.

    Raises:
        PreflightError: when the file is none.
    """
    if settings.model.tokenizer is None:
        return None
    try:
        return read_tokenizer(Path(settings.model.tokenizer))
    except AprTrainError as error:
        raise PreflightError([tokenizer_finding(error)]) from error


def collected(find: Callable[[], T]) -> tuple[T | None, tuple[Finding, ...]]:
    """What a function finds, or nothing and its findings: one fault must not hide the next."""
    try:
        return find(), ()
    except PreflightError as error:
        return None, error.findings


def judge(
    settings: Settings, checkpoint: Checkpoint | None, *, device: str, precision: str, resume: Resume | None = None
) -> tuple[Header | None, Report]:
    """Every finding about the run, before it costs anything; raises none of them. The header has its tie decided.

    Asks torch for deterministic algorithms, where the run wants them, before it asks what can run.
    """
    model, data, run = settings.model, settings.data, settings.run
    header, contradiction = collected(lambda: tied_header(checkpoint))
    if header is None and checkpoint is not None:
        header = checkpoint.header
    tokenizer, unusable = collected(lambda: given_tokenizer(settings))
    if run.deterministic:
        make_deterministic()
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
    findings = (*contradiction, *unusable, *outside_findings(settings, resume), *separator_findings(report))
    return header, attrs.evolve(report, findings=(*findings, *report.findings))


def require_known_ids(largest: int, config: ModelConfig) -> None:
    """Stop before step 1 when the tokenised corpus holds an id that the embedding has no row for.

    Raises:
        PreflightError: PREFLIGHT-012.
    """
    findings = corpus_findings(largest, config)
    if findings:
        raise PreflightError(findings)


def tokenizer_for(settings: Settings, report: Report, config: ModelConfig, family: Family, say: Notice) -> TokenizerSpec:
    """The tokenizer that the preflight has seen; without any, a byte-level BPE of the model's vocabulary from the corpus.

    Raises:
        DataError: when there is no text to learn from.
        PreflightError: PREFLIGHT-017; pretrained weights know nothing of the ids of a new tokenizer.
    """
    if report.tokenizer is not None:
        return report.tokenizer
    if settings.model.init is not None:
        raise PreflightError([no_tokenizer(needed=True)])
    say(f"no tokenizer given: a byte-level BPE of {config.vocab_size:,} tokens is made from the corpus, once")
    return train_bpe(settings.data, config.vocab_size, encoder=family.info.kind == "encoder", notice=say)


def init_hash(settings: Settings, source: Checkpoint | None, started: Path | None, say: Notice) -> str | None:
    """The content hash of the file of `--init`; of a resumed run's, as far as it is still there.

    Args:
        settings: their `init` is the path.
        source: that file, open, at the start of a run.
        started: the folder of a run that goes on.
        say: told when the file is gone; the run does not need it any more.
    """
    if settings.model.init is None:
        return None
    if source is not None:
        return source.content_hash()
    if started is not None and not Path(settings.model.init).exists():
        say(f"{settings.model.init} is gone: whether it is still what the run started from cannot be checked")
        return read_identity(started).init
    with open_checkpoint(settings.model.init) as checkpoint:
        return checkpoint.content_hash()

"""The preflight of a training run: what `check` asks, and the text, the run's name and the separator of documents."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import attrs

from apr_train import rules
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.data.documents import Document
from apr_train.data.look import Look, look_at
from apr_train.data.objectives import OBJECTIVES, Objective
from apr_train.data.packing import implies_document_mask
from apr_train.data.scan import Scan
from apr_train.data.source import objective_of, read_sources
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.data.unchanged import Unchanged
from apr_train.errors import AprTrainError, ConfigError, DataError, Finding, PreflightError, RunError
from apr_train.family.registry import Registry
from apr_train.preflight.adapter_rules import adapter_findings
from apr_train.preflight.chat_rules import ChatReport, chat_report, with_template
from apr_train.preflight.evaluation_rules import evaluation_findings
from apr_train.preflight.family_rules import is_learnt_by
from apr_train.preflight.growing import growth_notes, has_grown
from apr_train.preflight.judge import preflight
from apr_train.preflight.machine_rules import device_findings
from apr_train.preflight.opening import given_tokenizer, open_source, tied_header
from apr_train.preflight.optimizer_rules import optimizer_findings
from apr_train.preflight.profile_rules import profile_findings
from apr_train.preflight.reference_rules import reference_findings
from apr_train.preflight.report import PreflightInput, Report, by_severity
from apr_train.preflight.use_rules import use_findings
from apr_train.run.folder import checkpoints, require_unused
from apr_train.run.launch import Launch, replicas
from apr_train.run.measures import NONE
from apr_train.run.option import flag
from apr_train.run.resume import Resume
from apr_train.run.settings import DataSettings, ModelSettings, ProcessSettings, RunSettings, Settings
from apr_train.run.trackers import tracker_findings

T = TypeVar("T")

_CHARACTERS_A_TOKEN = 64
"""More than a token has as a rule: the beginning of a document that is tried before all of it."""


def checkpoints_to_come(run: RunSettings, resume: Resume | None = None) -> int:
    """How many checkpoints lie there at one time on top of those that do now, the one that is being written included."""
    done = 0 if resume is None or resume.checkpoint is None else resume.checkpoint.step
    if done >= run.steps:
        return 0
    every = run.save_every or run.steps
    left = -(-run.steps // every) - done // every
    there = 0 if resume is None else len(checkpoints(resume.folder))
    if run.keep_best == NONE:
        return min(left, max(1, run.keep + 1 - there)) if run.keep else left
    left += -(-(run.steps - done) // (run.val_every or run.steps))  # a validation may come between two saves
    return min(left, max(1, run.keep + 2 - there)) if run.keep else left


def machine_findings(settings: Settings, resume: Resume | None = None) -> list[Finding]:
    """Of a new run, the name is free, and nothing but the file says what `--init` is."""
    return [] if resume is not None else [*_name_findings(settings.run), *_preset_findings(settings.model)]


def text_findings(look: Look, resume: Resume | None) -> list[Finding]:
    """What the look found; of a run that goes on, that text which is gone may be named anew."""
    return [_movable(found, "data", resume) if found.rule == rules.PREFLIGHT_019 else found for found in look.findings]


def _movable(finding: Finding, setting: str, resume: Resume | None) -> Finding:
    """The finding, and for an input of a run that goes on, that it may be named anew."""
    if resume is None or setting in resume.stated:
        return finding
    return attrs.evolve(finding, hint=f"If it was moved, say with {flag(setting)} where it is now: it is compared.")


def row_findings(look: Look, report: Report, data: DataSettings, default_row: int) -> list[Finding]:
    """The text to learn from is enough for one row, as far as that is known before it is tokenised.

    Args:
        look: at the text of `--data`.
        report: of the model, without which there are no rows.
        data: may leave the length of a row open.
        default_row: tokens of a row where it does.
    """
    if not look.learnt or report.config is None or report.objective is None:
        return []
    length = data.sequence_length or min(default_row, report.config.usable_positions)
    if length > report.config.usable_positions:
        return []  # PREFLIGHT-009 is about that length
    tokenizer = None if report.tokenizer is None else _built(report.tokenizer)
    needed = _needed(OBJECTIVES[report.objective], data, length)
    texts = (scan for scan in look.learnt if scan.take.whole_texts)  # of conversations chat_rules tells
    return [finding for scan in texts for finding in _row_findings(scan, tokenizer, needed, length)]


def _row_findings(scan: Scan, tokenizer: Tokenizer | None, needed: int, length: int) -> list[Finding]:
    """The same of one source."""
    try:
        found = _tokens(scan.train(), tokenizer, enough=length + 1)
    except DataError as error:
        return [error.under(rules.PREFLIGHT_025, "--data")]
    if found >= needed:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_026,
            subject="--data",
            field=scan.name or "",
            problem="the text is too little for one row",
            expected=f"at least {needed:,} tokens to learn from",
            found=f"{found:,} tokens" if tokenizer is not None else f"{found:,} tokens at most",
            hint="Give more text, or shorter rows with --sequence-length.",
        )
    ]


def has_chats(data: DataSettings, objective: Objective) -> bool:
    """Whether one of the sources of a run is made of conversations."""
    return any(source.kind == "chat" for source in read_sources(data, objective)[0].learnt)


def chats(look: Look, report: Report, data: DataSettings, default_row: int) -> ChatReport:
    """Of a run on conversations, what its template and they are good for."""
    if report.objective is None or report.config is None or report.family is None:
        return ChatReport()
    objective = OBJECTIVES[report.objective]
    if not is_learnt_by(report.family, objective) or not has_chats(data, objective):
        return ChatReport()
    length = data.sequence_length or min(default_row, report.config.usable_positions)
    return chat_report(report.tokenizer, look, data, length=length)


def _needed(objective: Objective, data: DataSettings, length: int) -> int:
    """Tokens of the least text that gives a row of this length."""
    if implies_document_mask(data.packing or objective.packing):
        return 2  # one is predicted from the other, and the rest is padding
    return length + 1 if objective.kind == "decoder" else length - 2  # a row of an encoder has two ends


def _built(tokenizer: TokenizerSpec) -> Tokenizer | None:
    try:
        return build_tokenizer(tokenizer)
    except AprTrainError:
        return None  # separator_findings says why


def _tokens(documents: Iterable[Document], tokenizer: Tokenizer | None, *, enough: int) -> int:
    """Tokens of documents, their ends included, counted until there are enough; without a tokenizer, a token a byte."""
    count = 0
    for document in documents:
        beginning = document.text[: _CHARACTERS_A_TOKEN * enough]
        for text in (beginning, document.text):
            found = len(text.encode("utf-8")) if tokenizer is None else len(tokenizer.encode(text))
            if count + found >= enough:
                return count + found
        count += found + 1
    return count


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


def open_run_source(settings: Settings, *, look: Look, device: str, resume: Resume | None = None) -> Checkpoint | None:
    """Open what the weights of a run come from: its checkpoint, or the file of `--init`; None for a run from scratch.

    Raises:
        PreflightError: when it cannot be opened, with all that can be known without it.
    """
    started = None if resume is None else resume.model_path
    path, layout = (started, None) if started is not None else (settings.model.init, settings.model.rope_layout)
    if path is None:
        return None
    checkpoint, unopened = collected(lambda: open_source(path, layout))
    if checkpoint is None:
        unopened = tuple(_movable(finding, "init", resume if started is None else None) for finding in unopened)
        others = [*text_findings(look, resume), *device_findings(device), *machine_findings(settings, resume)]
        raise PreflightError([*unopened, *others])
    return checkpoint


def judge_unknown_family(settings: Settings) -> Report | None:
    """The report of a new run whose `--arch` no plugin offers; None for a name that is installed.

    What would want torch, the arithmetic and the attention, is not asked before there is a config.

    Raises:
        PreflightError: as `open_run_source`.
    """
    arch = settings.model.arch
    if arch is None or arch in Registry.discover().names():
        return None
    device, precision = settings.run.device or "cpu", settings.run.precision or "fp32"
    look = look_at(settings.data, objective_of(settings), unchanged=Unchanged(believe=not settings.data.rehash))
    with ExitStack() as held:
        checkpoint = open_run_source(settings, look=look, device=device)
        if checkpoint is not None:
            held.enter_context(checkpoint)
        # without a config there is no row to compare the text with
        return judge_run(settings, checkpoint, look=look, default_row=1, device=device, precision=precision)[1]


def tokenizer_is_lost(settings: Settings, header: Header | None, resume: Resume | None) -> bool:
    """Whether a resume takes the tokenizer of its checkpoint, since the file that the run was started with is gone."""
    path = settings.model.tokenizer
    kept = header is not None and header.tokenizer is not None
    return kept and resume is not None and path is not None and resume.lost("tokenizer", path)


def _with_template(
    tokenizer: TokenizerSpec | None, header: Header | None, path: str | None, resume: Resume | None
) -> tuple[TokenizerSpec | None, tuple[Finding, ...]]:
    """The tokenizer with the template of `--chat-template`; a resume whose file is gone has it in its checkpoint."""
    kept = None if header is None else header.tokenizer
    if tokenizer is None or path is None or kept is None or resume is None or not resume.lost("chat_template", path):
        return with_template(tokenizer, path)
    return attrs.evolve(tokenizer, chat_template=kept.chat_template), ()


def judge_run(
    settings: Settings,
    checkpoint: Checkpoint | None,
    *,
    look: Look,
    default_row: int,
    device: str,
    precision: str,
    resume: Resume | None = None,
) -> tuple[Header | None, Report]:
    """Every finding about a training run, before it costs anything; raises none of them. The header has its tie decided.

    `look` is at the text of `--data`; `default_row` the tokens of a row where the settings leave that open.
    """
    model, data, run = settings.model, settings.data, settings.run
    header, contradiction = collected(lambda: None if checkpoint is None else tied_header(checkpoint))
    if header is None and checkpoint is not None:
        header = checkpoint.header
    tokenizer, of_tokenizer = _tokenizer_of(settings, header, resume, grown=has_grown(settings, checkpoint, resume))
    spread, uneven = _spread(settings.processes, Launch.of(os.environ))
    report = preflight(
        PreflightInput.of(
            settings,
            header=header,
            tokenizer=tokenizer,
            batch_size=data.batch_size or 1,
            **spread,
            out=Path(run.out, run.run or "") if resume is None else resume.folder,
            checkpoints=checkpoints_to_come(run, resume),
            device=device,
            precision=precision,
            attention=model.attention,
            lora=settings.lora,
            optimizer=settings.optimizer,
            needs_tokenizer=model.tokenizer is None,
        )
    )
    of_chats = chats(look, report, data, default_row)
    findings = (
        *contradiction,
        *uneven,
        *of_tokenizer,
        *text_findings(look, resume),
        *row_findings(look, report, data, default_row),
        *of_chats.findings,
        *_run_findings(settings, report, header, None if resume is not None else checkpoint, resume),
        *report.findings,
    )
    facts = report.facts | look.facts | of_chats.facts
    return header, attrs.evolve(
        report, findings=by_severity(findings), notes=(*growth_notes(checkpoint), *look.notes), facts=facts
    )


def _spread(settings: ProcessSettings, launch: Launch | None) -> tuple[dict[str, int], tuple[Finding, ...]]:
    """How many processes there are and in how many pieces each parameter lies, for `PreflightInput`; what speaks against it."""
    if launch is None:
        return {}, ()
    try:
        return {"processes": launch.size, "pieces": launch.size // replicas(settings, launch)}, ()
    except ConfigError as error:
        return {"processes": launch.size}, error.findings


def _tokenizer_of(
    settings: Settings, header: Header | None, resume: Resume | None, *, grown: bool
) -> tuple[TokenizerSpec | None, tuple[Finding, ...]]:
    """The tokenizer of a run with its template, and what is wrong with the files of both.

    `grown`: the checkpoint's own has the run's new tokens, whatever `--tokenizer` names.
    """
    own = grown or tokenizer_is_lost(settings, header, resume)
    named = None if own else settings.model.tokenizer
    given, unusable = collected(lambda: None if named is None else given_tokenizer(named))
    chosen = given if given is not None or header is None else header.tokenizer
    tokenizer, of_template = _with_template(chosen, header, settings.model.chat_template, resume)
    return tokenizer, (*(_movable(finding, "tokenizer", resume) for finding in unusable), *of_template)


def _run_findings(
    settings: Settings, report: Report, header: Header | None, fresh: Checkpoint | None, resume: Resume | None
) -> Iterator[Finding]:
    """What is to be said of the rest of a run's settings; `fresh` is the checkpoint that a new run starts from."""
    yield from machine_findings(settings, resume)
    yield from separator_findings(report)
    if resume is None:
        yield from reference_findings(header, report, settings)
    yield from evaluation_findings(settings, report, fresh)
    yield from adapter_findings(settings, report)
    yield from optimizer_findings(settings, report)
    yield from use_findings(settings, report.objective, stated=None if resume is None else resume.stated)
    yield from profile_findings(settings.run, resume)
    yield from tracker_findings(settings.run.tracker)

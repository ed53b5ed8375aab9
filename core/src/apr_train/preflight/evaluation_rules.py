"""Evaluations in the run, and the tokens around a hole where evaluation or objective need them."""

from __future__ import annotations

from collections.abc import Iterable

from apr_train import rules
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.data.objectives import OBJECTIVES, Objective
from apr_train.data.source import read_sources
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import AprTrainError, ConfigError, Finding
from apr_train.preflight.family_rules import is_learnt_by
from apr_train.preflight.fim_rules import fim_findings, no_tokenizer_yet
from apr_train.preflight.report import Report
from apr_train.run.evaluation_names import FLAG, HOLES, EvaluationName, parse_evaluations
from apr_train.run.settings import Settings


def evaluation_findings(settings: Settings, report: Report, checkpoint: Checkpoint | None) -> list[Finding]:
    """Of `--eval` that it names evaluations, of a model that can be asked; and of the tokens around a hole, if any are needed.

    Args:
        checkpoint: that fresh training starts from; None: there is none, or the run goes on.
    """
    if report.objective is None:
        return []
    objective = OBJECTIVES[report.objective]
    try:
        names = parse_evaluations(settings.run.eval)
        findings = _unanswered(names, settings, objective)
    except ConfigError as error:
        names, findings = {}, list(error.findings)
    needed = "middle" in objective.special_tokens or (HOLES in names and not findings)
    possible = report.family is not None and is_learnt_by(report.family, objective)  # else PREFLIGHT-002 says so
    return [*findings, *(_fim(settings, report, checkpoint) if needed and possible else [])]


def _unanswered(names: Iterable[EvaluationName], settings: Settings, objective: Objective) -> list[Finding]:
    """Evaluations that a model of this objective cannot be asked."""
    if objective.kind != "decoder":
        return list(_refused(names, f"{objective.name} does not write", "a decoder"))
    sources, _ = read_sources(settings.data, objective)
    kinds = {source.kind for source in sources.held_out or sources.learnt}
    if "text" not in kinds:
        problem = f"what is held out is no text but a source of the kind {' or '.join(sorted(kinds))}"
        return list(_refused(names, problem, 'a source of kind = "text"'))
    return []


def _refused(names: Iterable[EvaluationName], problem: str, expected: str) -> Iterable[Finding]:
    for name in names:
        hint = f"Leave {FLAG} out, or measure the result with apr-train eval."
        yield Finding(rule=rules.EVAL_001, subject=FLAG, problem=problem, expected=expected, found=name, hint=hint)


def _fim(settings: Settings, report: Report, checkpoint: Checkpoint | None) -> list[Finding]:
    if report.family is None or report.config is None:
        return []
    if report.tokenizer is None:
        return [no_tokenizer_yet()] if settings.model.init is None and settings.data.fim_tokens is None else []
    try:
        tokenizer = build_tokenizer(report.tokenizer)
    except AprTrainError:
        return []  # separator_findings says why
    info, rows = report.family.info, report.config.vocab_size
    return fim_findings(tokenizer, info, setting=settings.data.fim_tokens, rows=rows, checkpoint=checkpoint)

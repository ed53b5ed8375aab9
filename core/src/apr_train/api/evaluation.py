"""`apr_train.evaluate`, and the gates beside it: a checkpoint's loss on held-out text, and what it writes there."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Unpack

import attrs
from attrs import frozen

from apr_train.api.options import EvalOptions, LoadOptions, Place, check_names, wanted_model
from apr_train.errors import ConfigError
from apr_train.run.asked import named_values
from apr_train.run.events import Say
from apr_train.run.paths import user_path
from apr_train.run.progress import Bar, no_bar, progress_bar, stage_bars

if TYPE_CHECKING:
    from apr_train.data.corpus import Corpus
    from apr_train.inference.evaluate import EvalRows
    from apr_train.inference.ready import Ready, Wanted
    from apr_train.run.settings import Settings
    from apr_train.training.fim_eval import FimReport
    from apr_train.training.syntax import SyntaxReport


@frozen(kw_only=True)
class Evaluation:
    """What a checkpoint knows of a held-out text, how it ran, and on which rows (docs/evaluate.md)."""

    path: str
    family: str
    objective: str
    parameters: int
    fresh: tuple[str, ...]
    """Parameters that the file does not have: random values stood in for them."""
    device: str
    precision: str
    attention: str
    loss: float
    """Nats, mean over all targets, as in training; NaN when the weights give none."""
    perplexity: float | None
    """exp(loss); None where that is out of range."""
    bits_per_byte: float | None
    """None where a tokenizer does not work on bytes, and for an objective that does not predict a whole text."""
    accuracy: float | None
    """Share of the targets that are predicted right; None where the objective does not measure it."""
    targets: int
    """Tokens that were predicted."""
    text_bytes: int | None
    """Bytes of text that the targets stand for."""
    tokens_per_s: float
    source_loss: Mapping[str, float | None]
    """Nats, mean over the targets of each source that has a name; None where it has none."""
    corpus: str
    """What was measured on, in words."""
    corpus_hash: str
    held_out_tokens: int
    sequence_length: int
    batch_size: int
    batches: int | None
    """None: every held-out row."""
    document_mask: bool
    packing: str
    from_scratch: bool
    """Whether fresh weights of the same shape were measured."""


def evaluate(
    path: Place,
    *,
    from_scratch: bool = False,
    rows_of: Place | None = None,
    notice: Say | None = None,
    progress: bool = False,
    **how: Unpack[EvalOptions],
) -> Evaluation:
    """Measure a checkpoint on held-out text, as `apr-train eval` does.

    One of a run is measured on that run's own validation rows, so that the loss is the one in its metrics; any other on
    those of a new run. What is given wins.

    Args:
        path: any checkpoint.
        from_scratch: measure the same shape freshly initialised, as a baseline.
        rows_of: a run whose rows are measured, for a comparison.
        notice: called with what the command would say beside the numbers.
        progress: whether bars are drawn on standard error.
        how: see `EvalOptions`.

    Raises:
        AprTrainError: for whatever is wrong.
    """
    wanted, given, settings, say = _asked(path, how, rows_of, notice, where="evaluate")
    bar = progress_bar if progress else no_bar
    ready, rows = ready_on_rows(wanted, settings, given, from_scratch=from_scratch, say=say, bar=bar)
    return measured(ready, rows, from_scratch=from_scratch, say=say, shown=progress)


def evaluate_syntax(
    path: Place,
    count: int,
    *,
    max_tokens: int | None = None,
    from_scratch: bool = False,
    rows_of: Place | None = None,
    notice: Say | None = None,
    progress: bool = False,
    **how: Unpack[EvalOptions],
) -> SyntaxReport:
    """Let a decoder complete `count` held-out functions, and see how many are Python: `apr-train eval --syntax`.

    The other arguments are those of `evaluate`; `max_tokens` of a completion, 96 otherwise.

    Raises:
        AprTrainError: for whatever is wrong.
    """
    _at_least_one("count", count)
    _at_least_one("max_tokens", max_tokens)
    wanted, given, settings, say = _asked(path, how, rows_of, notice, where="evaluate_syntax")
    bar = progress_bar if progress else no_bar
    ready, rows = ready_on_rows(wanted, settings, given, writes=True, from_scratch=from_scratch, say=say, bar=bar)
    return completed(ready, rows, count, max_tokens, say=say, bar=bar)


def evaluate_fim(
    path: Place,
    count: int,
    *,
    fim_tokens: str | None = None,
    from_scratch: bool = False,
    rows_of: Place | None = None,
    notice: Say | None = None,
    progress: bool = False,
    **how: Unpack[EvalOptions],
) -> FimReport:
    """Hide a line in each of `count` held-out documents, and see what a decoder writes: `apr-train eval --fim`.

    The other arguments are those of `evaluate`; `fim_tokens` are PREFIX,SUFFIX,MIDDLE where they are not the known ones.

    Raises:
        AprTrainError: for whatever is wrong.
    """
    _at_least_one("count", count)
    wanted, given, settings, say = _asked(path, how, rows_of, notice, where="evaluate_fim")
    bar = progress_bar if progress else no_bar
    ready, rows = ready_on_rows(wanted, settings, given, writes=True, from_scratch=from_scratch, say=say, bar=bar)
    return filled(ready, rows, count, fim_tokens, say=say, bar=bar)


def _asked(
    path: Place, how: Mapping[str, Any], rows_of: Place | None, notice: Say | None, *, where: str
) -> tuple[Wanted, dict[str, Any], Settings, Say]:
    """Which model, what is given of its rows, the settings that decide the rest, and who is told."""
    from apr_train.inference.evaluate import settings_of

    check_names(how, EvalOptions, where=where)
    of_model = {name: value for name, value in how.items() if name in LoadOptions.__annotations__}
    wanted = wanted_model(path, of_model, where=where)
    rows = {name: value for name, value in how.items() if name not in of_model}
    batches = rows.pop("batches", None)
    given = named_values(rows, where=where)
    if batches is not None:
        if batches < 0:
            raise ConfigError("too small", where="batches", expected="0, which is all, or more", found=batches)
        given["batches"] = batches
    settings, _ = settings_of([wanted.path if rows_of is None else user_path(os.fspath(rows_of))])
    return attrs.evolve(wanted, objective=settings.model.objective), given, settings, notice or _unheard


def ready_on_rows(
    wanted: Wanted,
    settings: Settings,
    given: Mapping[str, Any],
    *,
    writes: bool = False,
    from_scratch: bool,
    say: Say,
    bar: Bar,
) -> tuple[Ready, EvalRows]:
    """Load a checkpoint to be measured, and decide the rows.

    Args:
        wanted: which model.
        settings: of the run whose rows they are.
        given: what the user says of the rows.
        writes: whether the model has to write.
        from_scratch: whether fresh values are put in place of its weights.
        say: told of warnings.
        bar: how progress is shown.

    Raises:
        AprTrainError: for whatever is wrong.
    """
    from apr_train.inference.evaluate import check_rows, forget, rows_for
    from apr_train.inference.generate import writing_precision
    from apr_train.inference.ready import make_ready, opened
    from apr_train.model.device import default_precision

    with opened(wanted, kind="decoder" if writes else None, say=say) as examined:
        rows = rows_for(settings, given, config=examined.config, objective=examined.objective, device=examined.device)
        check_rows(rows, examined.config, examined.objective)
        precision = settings.run.precision or default_precision(examined.device)
        precision = writing_precision(examined.device) if writes else precision
        with bar("loading", examined.total_bytes) as advance:
            ready = make_ready(
                examined,
                precision=precision,
                document_mask=rows.data.document_mask,
                allow_fresh=not writes,
                progress=advance,
            )
    if from_scratch:
        forget(ready)
        say(f"{wanted.path}: its weights are put aside; fresh ones of the same shape are measured")
    elif ready.loaded.fresh:
        say(f"warning: {wanted.path} does not have {', '.join(ready.loaded.fresh)}: random values stand in for it")
    return ready, rows


def measured(ready: Ready, rows: EvalRows, *, from_scratch: bool, say: Say, shown: bool) -> Evaluation:
    """The loss on the rows.

    Raises:
        AprTrainError: as `corpus_for` and `batches_for`.
    """
    from apr_train.inference.evaluate import batches_for, corpus_for, measure

    bar = progress_bar if shown else no_bar
    with stage_bars() if shown else nullcontext() as stages:
        corpus = corpus_for(rows, ready, progress=stages, say=say)
    with bar("measuring", rows.batches, unit="batches") as done:
        found = measure(ready, batches_for(rows, ready, corpus), done=done)
    if not math.isfinite(found.loss):
        say(f"warning: {ready.path}: the loss is not a number; validate --data says whether its weights are")
    return Evaluation(**about(ready), **attrs.asdict(found), **_on(rows, corpus), from_scratch=from_scratch)


def about(ready: Ready) -> dict[str, Any]:
    """Which model was measured, and how it ran."""
    return {
        "path": ready.path,
        "family": ready.family.name,
        "objective": ready.objective.name,
        "parameters": sum(parameter.numel() for parameter in ready.model.parameters()),
        "fresh": ready.loaded.fresh,
        "device": str(ready.device),
        "precision": ready.precision.name,
        "attention": ready.attention.backend.name,
    }


def _on(rows: EvalRows, corpus: Corpus) -> dict[str, Any]:
    return {
        "corpus": corpus.description,
        "corpus_hash": corpus.hash,
        "held_out_tokens": corpus.held_out_tokens,
        "sequence_length": rows.sequence_length,
        "batch_size": rows.batch_size,
        "batches": rows.batches,
        "document_mask": rows.data.document_mask,
        "packing": rows.packing,
    }


def completed(ready: Ready, rows: EvalRows, count: int, length: int | None, *, say: Say, bar: Bar) -> SyntaxReport:
    """Held-out functions that the model completed.

    Raises:
        DataError: when there is none that fits.
    """
    from apr_train.data.corpus import held_out_documents
    from apr_train.inference.generate import examinee_of
    from apr_train.training.syntax import syntax_gate

    with bar("completing", count, unit="functions") as done:
        documents, special = held_out_documents(rows.data, ready.objective), rows.data.parse_special
        report = syntax_gate(examinee_of(ready), documents, count=count, length=length, parse_special=special, done=done)
    if len(report.completed) < count:
        say(f"the held-out text has {len(report.completed)} functions that fit, not {count}")
    return report


def filled(ready: Ready, rows: EvalRows, count: int, setting: str | None, *, say: Say, bar: Bar) -> FimReport:
    """Held-out lines that the model wrote anew.

    Raises:
        DataError: when there is none that fits.
        TokenizerError: FIM-001 or FIM-002.
    """
    from apr_train.data.corpus import held_out_documents
    from apr_train.inference.generate import examinee_of
    from apr_train.inference.infill import tokens_for
    from apr_train.training.fim_eval import fim_gate

    tokens = tokens_for(ready, setting if setting is not None else rows.data.fim_tokens)
    with bar("filling", count, unit="lines") as done:
        documents = held_out_documents(rows.data, ready.objective)
        report = fim_gate(examinee_of(ready), documents, tokens, count=count, row=rows.sequence_length, done=done)
    if len(report.filled) < count:
        say(f"the held-out text has {len(report.filled)} documents with a line that fits, not {count}")
    return report


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError("too small", where=name, expected="at least 1", found=value)


def _unheard(text: str) -> None:
    """Nobody asked for notices."""

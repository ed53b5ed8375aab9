"""Everything that happens before step 1, in order: source, preflight, tokens, model, folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import cast

import torch
from attrs import frozen
from torch import nn

from apr_train.atomic import write_file
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.header import Header
from apr_train.data.corpus import Corpus, load_corpus
from apr_train.data.stream import BatchStream
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.errors import PreflightError
from apr_train.family.card import Objective
from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family
from apr_train.model.attention import Choice
from apr_train.model.device import PRECISIONS, choose_device
from apr_train.model.load import LoadReport
from apr_train.preflight import Report
from apr_train.preflight.machine_rules import device_findings
from apr_train.preflight.run_rules import outside_findings
from apr_train.run.folder import CONFIG, PREFLIGHT, locked, new_run_folder
from apr_train.run.identity import Identity, check_identity, read_identity, write_identity
from apr_train.run.preflight_file import write_preflight
from apr_train.run.resume import Resume
from apr_train.run.settings import Settings
from apr_train.run.settings_file import to_toml
from apr_train.training.build import choose_attention, make_model
from apr_train.training.defaults import resolve, run_stem
from apr_train.training.display import make_display, progress_bar
from apr_train.training.inputs import Inputs, Say, held_out, model_file, training_stream
from apr_train.training.model_file import ModelFile
from apr_train.training.optimizer import make_optimizer
from apr_train.training.run import Run, restore
from apr_train.training.source import collected, init_hash, judge, machine, open_source, require_known_ids, tokenizer_for


@frozen(kw_only=True)
class Prepared:
    """A run at its start, with what the summary, the sample and the card tell."""

    run: Run
    report: Report
    corpus: Corpus
    tokenizer: Tokenizer
    attention: Choice
    loaded: LoadReport | None
    identity: Identity
    write_model: ModelFile


@frozen(kw_only=True)
class _Parts:
    """What a run is made of that can fail; a new run's folder comes after it, so that a failed start leaves none."""

    model: nn.Module
    loaded: LoadReport | None
    attention: Choice
    stream: BatchStream


def examine(asked: Settings, resume: Resume | None = None) -> tuple[Checkpoint | None, Header | None, Report]:
    """Open the source of the weights and judge the run; the report may hold errors.

    Raises:
        PreflightError: when the source cannot be opened, with all that can be known without it.
    """
    device, precision = machine(asked.run)
    started = None if resume is None else resume.model_path
    path, layout = (started, None) if started is not None else (asked.model.init, asked.model.rope_layout)
    checkpoint, unopened = collected(lambda: open_source(path, layout))
    if unopened:
        raise PreflightError([*unopened, *device_findings(device), *outside_findings(asked, resume)])
    try:
        return checkpoint, *judge(asked, checkpoint, device=device, precision=precision, resume=resume)
    except BaseException:
        if checkpoint is not None:
            checkpoint.close()
        raise


@contextmanager
def prepare(asked: Settings, resume: Resume | None, say: Say) -> Iterator[Prepared]:
    """Make a run ready, and hold its folder until the context is left.

    Raises:
        AprTrainError: whatever is wrong, before anything is trained.
    """
    if asked.run.threads is not None:
        torch.set_num_threads(asked.run.threads)
    with ExitStack() as held:
        checkpoint, header, report = examine(asked, resume)
        if checkpoint is not None:
            held.callback(checkpoint.close)
        report.raise_for_errors()
        for finding in report.warnings:
            say(f"warning: {finding}")
        if resume is not None:
            held.enter_context(locked(resume.folder))
            resume.require_unchanged()
        inputs = _gather(asked, resume, checkpoint, header, report, say)
        parts = _make(inputs, checkpoint, say)
        if checkpoint is not None:
            checkpoint.close()
        folder = resume.folder if resume is not None else held.enter_context(_new_folder(inputs))
        yield _ready(inputs, parts, folder, resume)


def _gather(
    asked: Settings, resume: Resume | None, source: Checkpoint | None, header: Header | None, report: Report, say: Say
) -> Inputs:
    """Settle the settings, and find or make tokenizer and tokens."""
    family, config = cast(Family, report.family), cast(ModelConfig, report.config)
    objective, device = cast(Objective, report.objective), choose_device(asked.run.device)
    settings = resolve(asked, family=family.info, config=config, objective=objective, device=device)
    tokenizer = build_tokenizer(tokenizer_for(settings, report, config, family, say))
    with progress_bar() as progress:
        corpus = load_corpus(settings.data.corpus, tokenizer, progress=progress, notice=say)
    require_known_ids(corpus.max_token_id, config)
    init = init_hash(settings, source if resume is None else None, resume.folder if resume else None, say)
    identity = Identity(corpus=corpus.hash, tokenizer=tokenizer.fingerprint, init=init)
    if resume is not None:
        check_identity(read_identity(resume.folder), identity, folder=resume.folder)
    return Inputs(
        settings=settings,
        device=device,
        header=header,
        report=report,
        family=family,
        config=config,
        objective=objective,
        tokenizer=tokenizer,
        corpus=corpus,
        identity=identity,
    )


def _make(inputs: Inputs, source: Checkpoint | None, say: Say) -> _Parts:
    settings, device, objective = inputs.settings, inputs.device, inputs.objective
    precision = PRECISIONS[cast(str, settings.run.precision)]
    choice = choose_attention(inputs.family, inputs.config, settings, objective, precision, device)
    stream = training_stream(inputs, say)
    model, loaded = make_model(inputs.report, choice, source, settings, precision=precision, device=device)
    return _Parts(model=model, loaded=loaded, attention=choice, stream=stream)


def _new_folder(inputs: Inputs) -> AbstractContextManager[Path]:
    run = inputs.settings.run
    return new_run_folder(Path(run.out), run.run, run_stem(inputs.settings))


def _ready(inputs: Inputs, parts: _Parts, folder: Path, resume: Resume | None) -> Prepared:
    """Put a resumed run back to where it was, and note in the folder what the run is."""
    run = _run(inputs, parts, folder, done=resume.step if resume is not None else 0)
    if resume is not None:
        restore(run, resume)
    else:
        write_identity(folder, inputs.identity)
    write_preflight(folder / PREFLIGHT, inputs.report.to_dict())
    write_file(folder / CONFIG, to_toml(inputs.settings).encode("utf-8"))
    return Prepared(
        run=run,
        report=inputs.report,
        corpus=inputs.corpus,
        tokenizer=inputs.tokenizer,
        attention=parts.attention,
        loaded=parts.loaded,
        identity=inputs.identity,
        write_model=cast(ModelFile, run.write_model),
    )


def _run(inputs: Inputs, parts: _Parts, folder: Path, *, done: int) -> Run:
    settings, loaded = inputs.settings, parts.loaded
    return Run(
        settings=settings,
        folder=folder,
        model=parts.model,
        optimizer=make_optimizer(parts.model, settings.optimizer),
        stream=parts.stream,
        held_out=held_out(inputs),
        objective=inputs.objective,
        precision=PRECISIONS[cast(str, settings.run.precision)],
        device=inputs.device,
        write_model=model_file(inputs),
        display=make_display(settings.run.steps, done=done, every=settings.run.log_every),
        warm=settings.model.init is not None,
        fresh=loaded.fresh if loaded is not None else (),
        vocab_size=inputs.config.vocab_size,
    )

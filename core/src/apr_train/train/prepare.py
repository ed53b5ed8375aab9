"""Everything that happens before step 1, in order: source, preflight, tokens, folder, model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from attrs import frozen

from apr_train.atomic import replace_file
from apr_train.attention import Choice
from apr_train.config import ModelConfig
from apr_train.data.batch import Batch
from apr_train.data.corpus import Corpus, load_corpus
from apr_train.data.stream import BatchStream, validation_batches
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.facade import Family
from apr_train.family import Layout, Objective
from apr_train.formats.checkpoint import Checkpoint
from apr_train.header import Header
from apr_train.load import LoadReport
from apr_train.preflight import Report
from apr_train.train.artifact import ModelFile
from apr_train.train.assemble import choose_attention, make_model
from apr_train.train.defaults import resolve, run_stem
from apr_train.train.display import make_display, progress_bar
from apr_train.train.identity import Identity, check_identity, read_identity, write_identity
from apr_train.train.lock import locked
from apr_train.train.optimizer import make_optimizer
from apr_train.train.origin import origin_of
from apr_train.train.precision import PRECISIONS, choose_device, default_precision
from apr_train.train.resume import Resume, restore
from apr_train.train.run import HeldOut, Run
from apr_train.train.run_folder import CONFIG, create_run_folder
from apr_train.train.settings import Settings
from apr_train.train.settings_file import to_toml
from apr_train.train.source import init_hash, judge, open_source, require_known_ids, tokenizer_for

Say = Callable[[str], None]


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
class _Inputs:
    """What is known before anything of the run is on disk or in memory."""

    settings: Settings
    device: torch.device
    header: Header | None
    report: Report
    family: Family
    config: ModelConfig
    objective: Objective
    tokenizer: Tokenizer
    corpus: Corpus
    identity: Identity


def examine(asked: Settings, resume: Resume | None = None) -> tuple[Checkpoint | None, Header | None, Report]:
    """Open the source of the weights and judge the run; the report may hold errors.

    Raises:
        PreflightError: when the source cannot be opened.
    """
    device = choose_device(asked.run.device)
    if resume is not None and resume.model_path is not None:
        checkpoint = open_source(resume.model_path)
    else:
        checkpoint = open_source(asked.model.init, asked.model.rope_layout)
    try:
        precision = asked.run.precision or default_precision(device)
        return checkpoint, *judge(asked, checkpoint, device=str(device), precision=precision)
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
    checkpoint, header, report = examine(asked, resume)
    try:
        report.raise_for_errors()
        for finding in report.warnings:
            say(f"warning: {finding}")
        inputs = _gather(asked, resume, checkpoint, header, report, say)
        folder = resume.folder if resume is not None else _new_folder(inputs)
        with locked(folder):
            prepared = _assemble(inputs, folder, resume, checkpoint, say)
            if checkpoint is not None:
                checkpoint.close()
            yield prepared
    finally:
        if checkpoint is not None:
            checkpoint.close()


def _gather(
    asked: Settings, resume: Resume | None, source: Checkpoint | None, header: Header | None, report: Report, say: Say
) -> _Inputs:
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
    return _Inputs(
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


def _new_folder(inputs: _Inputs) -> Path:
    run = inputs.settings.run
    folder = create_run_folder(Path(run.out), run.run, run_stem(inputs.settings))
    write_identity(folder, inputs.identity)
    return folder


def _assemble(inputs: _Inputs, folder: Path, resume: Resume | None, source: Checkpoint | None, say: Say) -> Prepared:
    """Make the model and everything around it; put a resumed run back to where it was."""
    settings, device, objective = inputs.settings, inputs.device, inputs.objective
    precision = PRECISIONS[cast(str, settings.run.precision)]
    choice = choose_attention(inputs.family, inputs.config, settings, objective, precision, device)
    model, loaded = make_model(inputs.report, choice, source, settings, precision=precision, device=device)
    write_model = _model_file(inputs)
    run = Run(
        settings=settings,
        folder=folder,
        model=model,
        optimizer=make_optimizer(model, settings.optimizer),
        stream=_stream(inputs, say),
        held_out=_held_out(inputs),
        objective=objective,
        precision=precision,
        device=device,
        write_model=write_model,
        display=make_display(settings.run.steps, done=0, every=settings.run.log_every),
        warm=settings.model.init is not None,
        fresh=loaded.fresh if loaded is not None else (),
        vocab_size=inputs.config.vocab_size,
    )
    if resume is not None:
        restore(run, resume)
    with replace_file(folder / CONFIG) as file:
        file.write(to_toml(settings).encode("utf-8"))
    return Prepared(
        run=run,
        report=inputs.report,
        corpus=inputs.corpus,
        tokenizer=inputs.tokenizer,
        attention=choice,
        loaded=loaded,
        identity=inputs.identity,
        write_model=write_model,
    )


def _model_file(inputs: _Inputs) -> ModelFile:
    return ModelFile(
        info=inputs.family.info,
        config=inputs.config,
        name_map=inputs.family.map_tensor_names(inputs.config, Layout()),
        header=inputs.header,
        tokenizer=inputs.tokenizer.spec,
        origin=origin_of(inputs.settings, inputs.identity, inputs.family),
    )


def _stream(inputs: _Inputs, say: Say) -> BatchStream:
    data = inputs.settings.data
    return BatchStream(
        inputs.corpus.train,
        objective=inputs.objective,
        sequence_length=cast(int, data.sequence_length),
        batch_size=cast(int, data.batch_size),
        seed=inputs.settings.run.seed,
        tokenizer=inputs.tokenizer,
        document_mask=data.document_mask,
        mask_probability=data.mask_probability,
        on_epoch=lambda epochs: say(f"epoch {epochs} done: the corpus starts again in a new order"),
    )


def _held_out(inputs: _Inputs) -> HeldOut:
    data = inputs.settings.data
    batch_size = cast(int, data.batch_size)

    def batches() -> Iterable[Batch]:
        return validation_batches(
            inputs.corpus.validation,
            objective=inputs.objective,
            sequence_length=cast(int, data.sequence_length),
            batch_size=batch_size,
            tokenizer=inputs.tokenizer,
            document_mask=data.document_mask,
            mask_probability=data.mask_probability,
            max_rows=data.val_batches * batch_size,
        )

    return batches

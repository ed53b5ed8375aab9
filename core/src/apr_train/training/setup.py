"""Everything that happens before step 1, in order: source, preflight, tokens, model, folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from time import monotonic

import torch
from attrs import Factory, frozen
from torch import nn

from apr_train.atomic import write_file
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.given_name import hub_name
from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.checkpoint.reference import reference_of
from apr_train.data.batch import Batch
from apr_train.data.bpe import train_bpe
from apr_train.data.corpus import Corpus, EncodingWanted, held_out_documents, load_corpus
from apr_train.data.decided import default_row
from apr_train.data.look import Look, look_at
from apr_train.data.reference import reference_rows
from apr_train.data.source import objective_of
from apr_train.data.special_tokens import ending_ids
from apr_train.data.split import SPLIT_RULE
from apr_train.data.stream import BatchStream, validation_batches
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.data.unchanged import Unchanged
from apr_train.errors import PreflightError
from apr_train.family.card import Layout
from apr_train.model.acceleration import make_deterministic
from apr_train.model.attention import Choice, Request
from apr_train.model.device import PRECISIONS, Precision, choose_device, default_precision, memory_errors
from apr_train.model.load import LoadReport
from apr_train.model.protocol import LanguageModel
from apr_train.preflight import Report
from apr_train.preflight.adapter_rules import chosen_sites
from apr_train.preflight.growing import added_tokens, grown_source, growth_notes
from apr_train.preflight.machine_rules import device_findings
from apr_train.preflight.opening import open_source
from apr_train.preflight.optimizer_rules import parameter_groups
from apr_train.preflight.report import Cleared, with_findings
from apr_train.preflight.run_rules import judge_run, open_run_source, tokenizer_is_lost
from apr_train.preflight.token_rules import corpus_findings, end_findings, no_tokenizer
from apr_train.run.changes import at_first
from apr_train.run.evaluation_names import parse_evaluations
from apr_train.run.events import Say
from apr_train.run.folder import CONFIG, MACHINE, MODEL, PREFLIGHT, locked, name_of, new_run_folder
from apr_train.run.identity import RunIdentity, check_identity, read_identity, write_identity
from apr_train.run.machine import write_machine
from apr_train.run.preflight_file import write_preflight
from apr_train.run.progress import doing, stage_bars
from apr_train.run.provenance import origin_of
from apr_train.run.resume import Resume
from apr_train.run.settings import RunSettings, Settings, run_stem
from apr_train.run.settings_file import to_toml
from apr_train.training.adapter_file import RESULT, TASKS, AdapterFile
from apr_train.training.averaging import AveragedWeights, start_remark
from apr_train.training.build import choose_attention, make_model
from apr_train.training.changed import note_changes
from apr_train.training.checkpoint import read_state
from apr_train.training.defaults import Decided, decide
from apr_train.training.display import NoDisplay, make_display
from apr_train.training.ending import TimeLimit
from apr_train.training.evaluation import judge_reference
from apr_train.training.evaluations import Evaluations, Material, make_questions
from apr_train.training.examinee import Examinee
from apr_train.training.machine import machine_of
from apr_train.training.model_file import ModelFile
from apr_train.training.optimizer.make import make_optimizer
from apr_train.training.profile import profiler_of
from apr_train.training.run import Evaluate, Run, restore
from apr_train.training.spikes import SpikeGuard


@frozen(kw_only=True)
class Examined:
    """What a run would start from, open, and what the preflight says of it."""

    checkpoint: Checkpoint | None
    """None: the run starts from scratch."""
    header: Header | None
    """The checkpoint's, its tie decided."""
    report: Report


@frozen(kw_only=True)
class Inputs:
    """What a run reads, decided and compared with what it was started on, before anything of the run is made."""

    decided: Decided
    cleared: Cleared
    header: Header | None
    """Of the checkpoint that the weights come from: provenance is inherited from it."""
    tokenizer: Tokenizer
    corpus: Corpus
    identity: RunIdentity
    added: Mapping[str, int] = Factory(dict)
    """Tokens that the run adds to the vocabulary, with their ids."""


@frozen(kw_only=True)
class Prepared:
    """A run at its start, with what the summary, the sample and the card tell."""

    run: Run
    inputs: Inputs
    report: Report
    attention: Choice
    loaded: LoadReport | None
    """None: all weights are fresh."""


@contextmanager
def examine(asked: Settings, resume: Resume | None = None, unchanged: Unchanged | None = None) -> Iterator[Examined]:
    """Open the source of the weights and judge the run; the report may hold errors. The source is closed at the end.

    Asks torch for deterministic algorithms, where the run wants them: not every backend's operators are, and one that is
    tried out without would be refused at the first step.

    Raises:
        PreflightError: when the source cannot be opened, with all that can be known without it.
    """
    if asked.run.deterministic:
        make_deterministic()
    device, precision = _machine(asked.run)
    look = look_at(asked.data, objective_of(asked), unchanged=unchanged or _readings(asked, resume))
    with ExitStack() as held:
        checkpoint, ungrown = grown_source(asked, _opened(asked, resume, device, look, held), resume)
        header, report = judge_run(
            asked,
            checkpoint,
            look=look,
            default_row=default_row(device),
            device=device,
            precision=precision,
            resume=resume,
        )
        yield Examined(checkpoint=checkpoint, header=header, report=with_findings(report, ungrown))


def _readings(asked: Settings, resume: Resume | None) -> Unchanged:
    """The readings of text that need not be read again; a run that goes on reads all of it."""
    return Unchanged(believe=resume is None and not asked.data.rehash)


def _machine(run: RunSettings) -> tuple[str, str]:
    """Device and precision by name, as asked for or chosen; a device that is not here is left for the preflight to find."""
    if run.device is not None and device_findings(run.device):
        return run.device, run.precision or "fp32"
    device = choose_device(run.device)
    return str(device), run.precision or default_precision(device)


def _opened(asked: Settings, resume: Resume | None, device: str, look: Look, held: ExitStack) -> Checkpoint | None:
    checkpoint = open_run_source(asked, look=look, device=device, resume=resume)
    return None if checkpoint is None else held.enter_context(checkpoint)


@contextmanager
def prepare(asked: Settings, resume: Resume | None, say: Say, *, shown: bool = True) -> Iterator[Prepared]:
    """Make a run ready, and hold its folder until the context is left.

    Args:
        asked: the settings of the run, of one that goes on with what may change in them.
        resume: the run to go on with.
        say: told of everything that the user should know.
        shown: whether bars and steps are drawn; `say` is told of what is left of them otherwise.

    Raises:
        AprTrainError: whatever is wrong, before anything is trained.
    """
    begun = monotonic()
    if asked.run.threads is not None:
        torch.set_num_threads(asked.run.threads)
    with ExitStack() as held:
        unchanged = _readings(asked, resume)  # one for both, so that a large corpus is gone through once
        with doing("looking for faults of the run", shown=shown):
            examined = held.enter_context(examine(asked, resume, unchanged))
        cleared = examined.report.cleared()
        for finding in examined.report.warnings:
            say(f"warning: {finding}")
        for note in growth_notes(examined.checkpoint):
            say(note)
        if resume is not None:
            held.enter_context(locked(resume.folder))
            resume.require_unchanged()
        inputs = _gather(asked, resume, examined, cleared, unchanged, say, shown)
        yield _prepared(inputs, examined, resume, held, say, begun, shown)


def _gather(
    asked: Settings,
    resume: Resume | None,
    examined: Examined,
    cleared: Cleared,
    unchanged: Unchanged,
    say: Say,
    shown: bool,
) -> Inputs:
    """Settle the settings, and find or make tokenizer and tokens."""
    device = choose_device(asked.run.device)
    decided = decide(asked, family=cleared.family.info, config=cleared.config, objective=cleared.objective, device=device)
    tokenizer = build_tokenizer(_tokenizer_for(decided.settings, cleared, resume, say))
    told = {f"warning: {finding}" for finding in examined.report.warnings}
    init = _init_hash(decided.settings, examined.checkpoint, resume, say, shown=shown)

    def identity(corpus: str) -> RunIdentity:
        return RunIdentity(corpus=corpus, tokenizer=tokenizer.fingerprint, init=init, split=SPLIT_RULE)

    def require_same(corpus: str) -> None:
        if resume is not None:
            check_identity(read_identity(resume.folder), identity(corpus), named=_places(decided.settings))

    with stage_bars() if shown else nullcontext() as progress:
        corpus = load_corpus(
            decided.settings.data,
            tokenizer,
            objective=cleared.objective,
            options=encoding_wanted(decided, cleared),
            unchanged=unchanged,
            hashed=require_same,  # before another text is tokenised for nothing
            progress=progress,
            notice=_unless(told, say),
        )
    if findings := corpus_findings(corpus.max_token_id, cleared.config):
        raise PreflightError(findings)
    if tokenizer_is_lost(asked, examined.header, resume):
        say(f"{asked.model.tokenizer} is gone: the checkpoint holds the same tokenizer")
    return Inputs(
        decided=decided,
        cleared=cleared,
        header=examined.header,
        tokenizer=tokenizer,
        corpus=corpus,
        identity=identity(corpus.hash),
        added=added_tokens(asked, examined.checkpoint, resume),
    )


def encoding_wanted(decided: Decided, cleared: Cleared) -> EncodingWanted:
    """What decides the ids of a run beside its text, its tokenizer and the settings of the data."""
    return EncodingWanted(
        sequence_length=decided.sequence_length,
        seed=decided.settings.run.seed,
        fim_tokens=cleared.family.info.fim_tokens,
    )


def _places(settings: Settings) -> dict[str, str]:
    """Where the inputs of an identity lie."""
    model = settings.model
    paths = [path for item in settings.data.source for path in item.path]
    return {
        "corpus": ", ".join([*settings.data.data, *paths, *settings.data.val_data]),
        "tokenizer": model.tokenizer or "",
        "init": model.init or "",
    }


def _unless(told: Collection[str], say: Say) -> Say:
    """Says what is not among `told`."""
    return lambda text: None if text in told else say(text)


def _tokenizer_for(settings: Settings, cleared: Cleared, resume: Resume | None, say: Say) -> TokenizerSpec:
    """The tokenizer that the preflight has seen; without any, a byte-level BPE of the model's vocabulary from the corpus.

    Raises:
        DataError: when there is no text to learn from.
        PreflightError: PREFLIGHT-017; pretrained weights know nothing of the ids of a new tokenizer.
    """
    if cleared.tokenizer is not None:
        return cleared.tokenizer
    if settings.model.init is not None:
        raise PreflightError([no_tokenizer(needed=True)])
    size = cleared.config.vocab_size
    say(f"no tokenizer given: a byte-level BPE of {size:,} tokens is made from the corpus, once")
    return train_bpe(
        settings.data,
        size,
        objective=cleared.objective,
        encoder=cleared.family.info.kind == "encoder",
        believe=resume is None,
        notice=say,
    )


def _init_hash(settings: Settings, source: Checkpoint | None, resume: Resume | None, say: Say, *, shown: bool) -> str | None:
    """The content hash of the file of `--init`; of a resumed run's, as far as the file is still there."""
    path = settings.model.init
    if path is None:
        return None
    if resume is None and source is not None:
        with doing(_HASHING, shown=shown):
            return source.content_hash()
    if resume is not None and resume.lost("init", path):
        say(f"{path} is gone: whether it is still what the run started from cannot be checked")
        return read_identity(resume.folder).init
    with doing(_HASHING, shown=shown), open_source(path) as checkpoint:
        return checkpoint.content_hash()


_HASHING = "hashing the weights that the run starts from"


def _prepared(
    inputs: Inputs, examined: Examined, resume: Resume | None, held: ExitStack, say: Say, begun: float, shown: bool
) -> Prepared:
    """Make all that can fail, then a new run's folder, so that a failed start leaves none; then note what the run is."""
    decided, adapters = inputs.decided, adapter_file(inputs)
    choice = choose_attention(inputs.cleared, decided)
    if adapters is None:
        model_file(inputs).require_writable()
    stream = training_stream(inputs, say, resume)
    evaluate = make_evaluations(inputs, choice, say)
    with doing("loading the weights" if examined.checkpoint is not None else "making the model", shown=shown):
        model, loaded = make_model(inputs.cleared, choice, examined.checkpoint, decided)
    arrived = resume is None and _compare_reference(inputs, model, choice, say, shown=shown)
    if examined.checkpoint is not None:
        examined.checkpoint.close()  # its map may be as large as the model
    with doing("making the optimizer, and looking at the machine", shown=shown):
        optimizer = make_optimizer(
            model,
            decided.settings.optimizer,
            lr=decided.schedule.lr,
            groups=parameter_groups(decided.settings, inputs.cleared.family, inputs.cleared.config),
            seed=decided.settings.run.seed,
        )
        machine = machine_of(decided, inputs.cleared)
    folder = resume.folder if resume is not None else held.enter_context(_new_folder(decided.settings))
    run = Run(
        settings=decided.settings,
        schedule=decided.schedule,
        folder=folder,
        model=model,
        optimizer=optimizer,
        stream=stream,
        held_out=validation_data(inputs, resume),
        evaluate=evaluate,
        objective=inputs.cleared.objective,
        precision=decided.precision,
        device=decided.device,
        write_model=model_file(inputs) if adapters is None else adapters,
        result=MODEL if adapters is None else RESULT,
        display=make_display(
            decided.schedule.steps, done=0 if resume is None else resume.step, every=decided.settings.run.log_every
        )
        if shown
        else NoDisplay(say),
        warm=decided.settings.model.init is not None,
        fresh=loaded.fresh if loaded is not None else (),
        arrived=arrived,
        vocab_size=inputs.cleared.config.vocab_size,
        spikes=SpikeGuard(decided.settings.run.skip_spikes) if decided.settings.run.skip_spikes else None,
        averaged=_averaged(decided.settings.run, model, say),
        changes=() if resume is None else resume.changes,
        time=TimeLimit.of(decided.settings.run, begun),
        machine=machine,
    )
    if resume is not None:
        if adapters is not None and resume.checkpoint is not None:
            adapters.restore(model, resume.checkpoint.path)
        restore(run, resume)
    else:
        write_identity(folder, inputs.identity)
        write_preflight(folder / PREFLIGHT, examined.report.to_dict())  # a resume's is of another file, its own checkpoint
    run.profiler = profiler_of(decided.settings.run, folder, run.device, run.display.say, done=run.step)
    write_machine(folder / MACHINE, machine)
    if resume is not None:
        note_changes(resume, say)
    write_file(folder / CONFIG, to_toml(decided.settings).encode("utf-8"))
    return Prepared(run=run, inputs=inputs, report=examined.report, attention=choice, loaded=loaded)


def _averaged(run: RunSettings, model: nn.Module, say: Say) -> AveragedWeights | None:
    """The averages of `--ema`, which begin as the model's weights; says where they would hardly leave these."""
    if run.ema is None:
        return None
    if (remark := start_remark(run.ema, run.steps)) is not None:
        say(remark)
    return AveragedWeights(model, run.ema)


def _compare_reference(inputs: Inputs, model: nn.Module, choice: Choice, say: Say, *, shown: bool) -> bool:
    """Where the file of `--init` holds a reference loss that can be compared, the loaded weights have it.

    Returns:
        Whether that was compared and is so.

    Raises:
        RunError: REFERENCE-001, unless `--allow-cold-init`.
    """
    header, decided = inputs.header, inputs.decided
    held = None if header is None else reference_of(header.extra, header.path)
    if header is None or held is None:
        return False
    rows = reference_rows(inputs.cleared.objective, inputs.tokenizer, positions=inputs.cleared.config.usable_positions)
    if rows.difference(held) is not None:
        return False  # the preflight has said so
    precision, allow = _precision_of_comparison(inputs, choice), decided.settings.run.allow_cold_init
    with memory_errors("the reference loss"), doing("measuring the reference loss", shown=shown):
        verdict, agrees = judge_reference(model, rows, held, precision=precision, subject=header.path, allow=allow)
    say(verdict)
    return agrees


def _precision_of_comparison(inputs: Inputs, choice: Choice) -> Precision:
    """float32, as in the file, where weights and attention can: products in bfloat16 hide small defects."""
    decided, config, objective = inputs.decided, inputs.cleared.config, inputs.cleared.objective
    exact, mask = PRECISIONS["fp32"], objective.mask_kind(document_mask=False)
    request = Request.for_config(config, device=decided.device.type, dtype=exact.kernel_dtype, mask=mask, training=False)
    possible = decided.precision.weights == exact.weights and choice.backend.supports(request) is None
    return exact if possible else decided.precision


def _new_folder(settings: Settings) -> AbstractContextManager[Path]:
    return new_run_folder(Path(settings.run.out), settings.run.run, run_stem(settings))


def model_file(inputs: Inputs) -> ModelFile:
    """The writer of the run's model.apr."""
    family, config = inputs.cleared.family, inputs.cleared.config
    return ModelFile(
        info=family.info,
        config=config,
        name_map=family.map_tensor_names(config, Layout()),
        header=inputs.header,
        tokenizer=inputs.tokenizer.spec,
        origin=origin_of(inputs.decided.settings, inputs.identity, family, torch=str(torch.__version__), added=inputs.added),
    )


def adapter_file(inputs: Inputs) -> AdapterFile | None:
    """The writer of the run's adapter; None for a run that trains all weights."""
    cleared, settings = inputs.cleared, inputs.decided.settings
    if settings.lora.lora_rank is None or settings.model.init is None:
        return None
    return AdapterFile(
        sites=chosen_sites(settings.lora, cleared.family, cleared.config),
        name_map=cleared.family.map_tensor_names(cleared.config, Layout()),
        base_name=name_of(settings.model.init),
        base_id=hub_name(settings.model.init),
        base_hash=inputs.identity.init or "",
        tokenizer=inputs.tokenizer.spec,
        task=TASKS.get(cleared.objective.kind),
    )


def make_evaluations(inputs: Inputs, choice: Choice, say: Say) -> Evaluate | None:
    """What the run is asked for with `--eval`, the same questions at each validation; None for nothing.

    Raises:
        DataError: when the held-out text has nothing to ask about.
    """
    decided, cleared, header = inputs.decided, inputs.cleared, inputs.header
    asked = parse_evaluations(decided.settings.run.eval)
    if not asked:
        return None
    data = decided.settings.data
    material = Material(
        documents=held_out_documents(data, cleared.objective),
        tokenizer=inputs.tokenizer,
        positions=cleared.config.usable_positions,
        row=decided.sequence_length,
        fim_tokens=cleared.family.info.fim_tokens,
        fim_setting=data.fim_tokens,
        parse_special=data.parse_special,
    )
    ends = ending_ids(inputs.tokenizer, {} if header is None else header.config)
    precision = _precision_of_comparison(inputs, choice)  # autocast would convert all weights for every token

    def examinee(model: LanguageModel) -> Examinee:
        return Examinee(
            model=model,
            tokenizer=material.tokenizer,
            positions=material.positions,
            precision=precision,
            device=decided.device,
            ends=ends,
        )

    made = make_questions(asked, material)
    for name, questions in made.items():
        if len(questions) < asked[name]:
            say(f"--eval {name}: the held-out text has {len(questions)} that fit, not {asked[name]}")
    return Evaluations(tuple(made.values()), examinee)


def training_stream(inputs: Inputs, say: Say, resume: Resume | None = None) -> BatchStream:
    """The training batches, from the first one on, or from where a checkpoint stands.

    `say` is told when an epoch ends, and which sources will.

    Raises:
        DataError: when a source is too small for one row.
        PreflightError: PREFLIGHT-041, when all sources end before the last step.
    """
    decided, data = inputs.decided, inputs.decided.settings.data
    stream = BatchStream(
        [part.rows for part in inputs.corpus.learnt],
        objective=inputs.cleared.objective,
        sequence_length=decided.sequence_length,
        batch_size=decided.batch_size,
        seed=decided.settings.run.seed,
        tokenizer=inputs.tokenizer,
        document_mask=data.document_mask,
        mask_probability=data.mask_probability,
        packing=data.packing or "concatenate",
        on_epoch=lambda epochs: say(f"epoch {epochs} done: the corpus starts again in a new order"),
        on_source=lambda name, epochs, ended: say(_of_source(name, epochs, ended=ended)),
    )
    if resume is not None and resume.checkpoint is not None:
        stream.load_state_dict(read_state(resume.checkpoint.path)["data"])
    _foresee(stream, decided, say, done=0 if resume is None else resume.step)
    return stream


def _of_source(name: str, epochs: int, *, ended: bool) -> str:
    what = "it has ended, and the others share its part" if ended else "it starts again in a new order"
    return f"source {name}: epoch {epochs} done: {what}"


def _foresee(stream: BatchStream, decided: Decided, say: Say, *, done: int) -> None:
    """Say at which steps sources will end; `done` of them are.

    Raises:
        PreflightError: when all of them end before the last step.
    """
    steps, per_step = decided.settings.run.steps, decided.batch_size * decided.settings.data.accumulate
    read = stream.rows_read
    if findings := end_findings(stream.rows, steps=steps, per_step=per_step, done=done, read=read):
        raise PreflightError(findings)
    for end in stream.ends_until(read + (steps - done) * per_step):
        if end.row > read:
            step = done - (read - end.row) // per_step
            say(f"source {end.name} will have ended with step {step:,}; the others share its part from there")


def validation_data(inputs: Inputs, resume: Resume | None = None) -> Callable[[], Iterable[Batch]]:
    """A function that gives the validation batches, the same rows each time, whatever batch size a resume wants."""
    decided, data = inputs.decided, inputs.decided.settings.data
    size = decided.batch_size if resume is None else at_first(resume.changes, "data.batch_size", decided.batch_size)
    return lambda: validation_batches(
        [part.rows for part in inputs.corpus.held_out],
        objective=inputs.cleared.objective,
        sequence_length=decided.sequence_length,
        batch_size=decided.batch_size,
        tokenizer=inputs.tokenizer,
        document_mask=data.document_mask,
        mask_probability=data.mask_probability,
        packing=data.packing or "concatenate",
        max_rows=data.val_batches * size,
    )

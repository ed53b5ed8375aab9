"""Everything that happens before step 1, in order: source, preflight, tokens, model, folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

import torch
from attrs import asdict, evolve, frozen
from torch import nn

from apr_train.atomic import write_file
from apr_train.checkpoint.reference import reference_of
from apr_train.data.reference import reference_rows
from apr_train.model.attention import Choice
from apr_train.model.device import memory_errors
from apr_train.model.load import LoadReport
from apr_train.model.threads import default_threads
from apr_train.preflight import Report
from apr_train.preflight.growing import growth_notes
from apr_train.preflight.optimizer_rules import parameter_groups
from apr_train.run.events import RunEvents, Say
from apr_train.run.folder import CONFIG, MACHINE, MODEL, PREFLIGHT, locked, new_run_folder
from apr_train.run.identity import write_identity
from apr_train.run.machine import Machine, write_machine
from apr_train.run.preflight_file import write_preflight
from apr_train.run.progress import doing
from apr_train.run.resume import Resume
from apr_train.run.settings import RunSettings, Settings, run_stem
from apr_train.run.settings_file import to_toml
from apr_train.training.adapter_file import RESULT
from apr_train.training.averaging import AveragedWeights, start_remark
from apr_train.training.build import choose_attention, make_model
from apr_train.training.changed import note_changes
from apr_train.training.display import NoDisplay, make_display
from apr_train.training.ending import TimeLimit
from apr_train.training.evaluation import judge_reference
from apr_train.training.evaluations import exact_precision, make_evaluations
from apr_train.training.inputs import Examined, Inputs, examine, gather
from apr_train.training.machine import machine_of
from apr_train.training.optimizer.make import Optimizers, make_optimizer
from apr_train.training.processes import Processes
from apr_train.training.profile import profiler_of
from apr_train.training.run import Run, restore
from apr_train.training.spikes import SpikeGuard
from apr_train.training.streams import training_stream, validation_data
from apr_train.training.writers import adapter_file, model_file


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
def prepare(
    asked: Settings, resume: Resume | None, say: Say, *, shown: bool = True, processes: Processes | None = None
) -> Iterator[Prepared]:
    """Make a run ready, and hold its folder until the context is left.

    Args:
        asked: the settings of the run, of one that goes on with what may change in them.
        resume: the run to go on with.
        say: told of everything that the user should know.
        shown: whether bars and steps are drawn; `say` is told of what is left of them otherwise.
        processes: those that make it together; only the first one says and shows something.

    Raises:
        AprTrainError: whatever is wrong, before anything is trained.
    """
    begun = monotonic()
    torch.set_num_threads(asked.run.threads if asked.run.threads is not None else default_threads())
    processes = processes or Processes()
    say, shown = processes.say(say), shown and processes.is_first
    with ExitStack() as held:
        with processes.in_turn():
            with doing("looking for faults of the run", shown=shown):
                examined = held.enter_context(examine(asked, resume))
            cleared = examined.report.cleared()
            for finding in examined.report.warnings:
                say(f"warning: {finding}")
            for note in growth_notes(examined.checkpoint):
                say(note)
            if resume is not None and processes.is_first:
                held.enter_context(locked(resume.folder))
                resume.require_unchanged()
            inputs = gather(asked, resume, examined, cleared, say, shown, processes)
            if resume is not None and asked.run.compile and not inputs.decided.settings.run.compile:
                resume = resume.uncompiled()
        processes.require_same(_facts(inputs))
        yield _prepared(inputs, examined, resume, held, say, begun, shown)


def _facts(inputs: Inputs) -> dict[str, str]:
    """What is the same on all processes of a run: the family's package and all that is read."""
    family, identity = inputs.cleared.family, asdict(inputs.identity)
    installed = {f"family {family.info.name}": f"{family.distribution} {family.version}"}
    installed |= {"--compile": str(inputs.decided.settings.run.compile)}
    return installed | {f"hash of {name}": str(value) for name, value in identity.items()}


def _prepared(
    inputs: Inputs, examined: Examined, resume: Resume | None, held: ExitStack, say: Say, begun: float, shown: bool
) -> Prepared:
    """Make all that can fail, then a new run's folder, so that a failed start leaves none; then note what the run is."""
    decided, processes = inputs.decided, inputs.processes
    settings = decided.settings
    adapters, weights = adapter_file(inputs), model_file(inputs)
    if adapters is None:
        weights.require_writable()
    choice = choose_attention(inputs.cleared, decided)
    stream = training_stream(inputs, say, resume)
    evaluate = make_evaluations(inputs, choice, say)
    with doing("loading the weights" if examined.checkpoint is not None else "making the model", shown=shown):
        model, loaded = make_model(inputs.cleared, choice, examined.checkpoint, decided, processes)
    arrived = resume is None and _compare_reference(inputs, model, choice, say, shown=shown)
    if examined.checkpoint is not None:
        examined.checkpoint.close()  # its map may be as large as the model
    with doing("making the optimizer, and looking at the machine", shown=shown):
        optimizer = _optimizer(inputs, model)
        machine = _machine_of_all(machine_of(decided, inputs.cleared), processes)
    folder = resume.folder if resume is not None else _new_folder(settings, held, processes)
    run = Run(
        settings=settings,
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
        write_model=weights if adapters is None else adapters,
        result=MODEL if adapters is None else RESULT,
        display=processes.display(lambda: _display(settings, resume, say, shown=shown)),
        processes=processes,
        warm=settings.model.init is not None,
        fresh=loaded.fresh if loaded is not None else (),
        arrived=arrived,
        vocab_size=inputs.cleared.config.vocab_size,
        spikes=SpikeGuard(settings.run.skip_spikes) if settings.run.skip_spikes else None,
        averaged=_averaged(settings.run, model, say),
        changes=() if resume is None else resume.changes,
        time=TimeLimit.of(settings.run, begun),
        machine=machine,
    )
    if resume is not None:
        if adapters is not None and resume.checkpoint is not None:
            adapters.restore(model, resume.checkpoint.path)
        restore(run, resume)
    if processes.is_first:
        run.profiler = profiler_of(settings.run, folder, run.device, run.display.say, done=run.step)
    processes.write(lambda: _note(folder, inputs, examined, resume, machine, say))
    return Prepared(run=run, inputs=inputs, report=examined.report, attention=choice, loaded=loaded)


def _optimizer(inputs: Inputs, model: nn.Module) -> Optimizers:
    decided, cleared = inputs.decided, inputs.cleared
    return make_optimizer(
        model,
        decided.settings.optimizer,
        lr=decided.schedule.lr,
        groups=parameter_groups(decided.settings, cleared.family, cleared.config),
        seed=decided.settings.run.seed,
    )


def _display(settings: Settings, resume: Resume | None, say: Say, *, shown: bool) -> RunEvents:
    """What draws the steps; where nothing is drawn, what hands on what is said."""
    if not shown:
        return NoDisplay(say)
    return make_display(settings.run.steps, done=0 if resume is None else resume.step, every=settings.run.log_every)


def _machine_of_all(machine: Machine, processes: Processes) -> Machine:
    """The first process's machine, with the peak of all devices together; measured ones were measured at the same time."""
    peaks = processes.everyone(None if machine.peak is None else machine.peak.flops_per_s)
    if machine.peak is None or len(peaks) == 1:
        return machine
    total = sum(value for value in peaks if value is not None)
    return evolve(machine, peak=None if None in peaks else evolve(machine.peak, flops_per_s=total))


def _note(folder: Path, inputs: Inputs, examined: Examined, resume: Resume | None, machine: Machine, say: Say) -> None:
    """Write down what the run is, and what a resume changes."""
    if resume is None:
        write_identity(folder, inputs.identity)
        write_preflight(folder / PREFLIGHT, examined.report.to_dict())  # a resume's is of another file, its own checkpoint
    write_machine(folder / MACHINE, machine)
    if resume is not None:
        note_changes(resume, say)
    write_file(folder / CONFIG, to_toml(inputs.decided.settings).encode("utf-8"))


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
    precision, allow = exact_precision(inputs, choice), decided.settings.run.allow_cold_init
    with memory_errors("the reference loss"), doing("measuring the reference loss", shown=shown):
        verdict, agrees = judge_reference(
            model, rows, held, precision=precision, subject=header.path, allow=allow, processes=inputs.processes
        )
    say(verdict)
    return agrees


def _new_folder(settings: Settings, held: ExitStack, processes: Processes) -> Path:
    """The folder of a new run, which the first process makes and holds."""

    def make() -> str:
        folder = held.enter_context(new_run_folder(Path(settings.run.out), settings.run.run, run_stem(settings)))
        processes.note_launch(folder)
        return str(folder)

    return Path(processes.answer(make))

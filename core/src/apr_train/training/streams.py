"""The batches of a run: those that it learns from, and those that it is validated on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from apr_train.data.batch import Batch
from apr_train.data.stream import BatchStream, validation_batches
from apr_train.errors import PreflightError
from apr_train.preflight.token_rules import end_findings
from apr_train.run.changes import at_first
from apr_train.run.events import Say
from apr_train.run.resume import Resume
from apr_train.training.checkpoint import read_state
from apr_train.training.defaults import Decided
from apr_train.training.inputs import Inputs


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
        share=inputs.processes.share,
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

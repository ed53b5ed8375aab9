"""Loss, perplexity, bits per byte and speed on held-out rows: those of the training's own validation unless told otherwise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from apr_train.data.batch import IGNORED, Batch
from apr_train.data.corpus import Corpus, EncodingWanted, load_corpus
from apr_train.data.decided import ROW
from apr_train.data.objectives import Objective
from apr_train.data.packing import with_packing
from apr_train.data.protocols import StageProgress
from apr_train.data.split import SPLIT_RULE
from apr_train.data.stream import validation_batches
from apr_train.errors import DataError, PreflightError
from apr_train.family.config import ModelConfig
from apr_train.inference.ready import Ready
from apr_train.inference.text import bytes_of_tokens
from apr_train.model.acceleration import compile_blocks, compiler_fault, reuse_freed_memory, uncompiled
from apr_train.model.loss import right_predictions
from apr_train.model.nats import token_nats
from apr_train.model.protocol import LanguageModel
from apr_train.preflight.family_rules import packing_findings
from apr_train.preflight.machine_rules import sequence_findings
from apr_train.preflight.token_rules import corpus_findings
from apr_train.run.events import Say
from apr_train.run.folder import CONFIG, IDENTITY, run_of
from apr_train.run.identity import read_identity
from apr_train.run.metrics import perplexity, tokens_per_second
from apr_train.run.objective_names import Packing
from apr_train.run.settings import DataSettings, Settings
from apr_train.run.settings_file import read_toml
from apr_train.training.defaults import BATCH


@frozen(kw_only=True)
class EvalRows:
    """The held-out rows of a corpus, with all that their settings leave open decided."""

    data: DataSettings
    """Which text, how it is split, and how documents and masks are treated."""
    sequence_length: int
    batch_size: int
    batches: int | None
    """None: every held-out row."""
    packing: Packing
    """How documents come into rows; `data` has the document mask that it implies."""
    seed: int = 0
    """Of the run: its tokens are in the cache."""


def settings_of(paths: Sequence[str]) -> tuple[Settings, Path | None]:
    """The settings of the first of the checkpoints' runs, and that run; a new run's settings if none is of a run.

    Raises:
        ConfigError: when the run's config.toml is damaged.
    """
    run = next((run for path in paths if (run := run_of(path)) is not None), None)
    return (Settings(), None) if run is None else (read_toml(run / CONFIG), run)


def held_out_otherwise(run: Path) -> bool:
    """Whether a run's text was held out by another rule than today's, so that some of what is measured was learnt.

    Raises:
        RunError: when the run's note of its inputs is damaged.
    """
    return (run / IDENTITY).exists() and read_identity(run).split != SPLIT_RULE


def rows_for(
    settings: Settings, given: Mapping[str, Any], *, config: ModelConfig, objective: Objective, device: torch.device
) -> EvalRows:
    """The run's rows, with what the user gave on top, and a training's own defaults for the rest.

    Raises:
        ConfigError: for a value out of range.
    """
    chosen = {name: value for name, value in given.items() if name != "batches"}
    if "data" in chosen:  # another text than the run's
        chosen = {"source": (), "val_data": ()} | chosen
    data = with_packing(attrs.evolve(settings.data, **chosen), objective.packing)
    batches = given.get("batches", data.val_batches)
    return EvalRows(
        data=data,
        sequence_length=data.sequence_length or min(ROW[device.type], config.usable_positions),
        batch_size=data.batch_size or BATCH[device.type],
        batches=batches or None,
        packing=data.packing or objective.packing,
        seed=settings.run.seed,
    )


def check_rows(rows: EvalRows, config: ModelConfig, objective: Objective) -> None:
    """Refuse rows that the model has no positions for, and those whose documents it could not keep apart.

    Raises:
        PreflightError: PREFLIGHT-009, PREFLIGHT-029.
    """
    findings = [*sequence_findings(rows.sequence_length, config), *packing_findings(objective, rows.packing)]
    if findings:
        raise PreflightError(findings)


def corpus_for(rows: EvalRows, ready: Ready, *, progress: StageProgress | None, say: Say) -> Corpus:
    """The tokenised corpus, of which every id fits the model.

    Raises:
        DataError: when the text cannot be read.
        PreflightError: when a token lies outside the model's vocabulary.
    """
    wanted = EncodingWanted(sequence_length=rows.sequence_length, seed=rows.seed, fim_tokens=ready.family.info.fim_tokens)
    corpus = load_corpus(
        rows.data,
        ready.tokenizer,
        objective=ready.objective,
        options=wanted,
        learn=False,
        progress=progress,
        notice=say,
    )
    findings = corpus_findings(corpus.max_token_id, ready.config)
    if findings:
        raise PreflightError(findings)
    return corpus


def batches_for(rows: EvalRows, ready: Ready, corpus: Corpus) -> Iterator[Batch]:
    """The batches to measure on, the same ones each time.

    Raises:
        DataError: when there is nothing to predict.
        TokenizerError: when the objective needs a special token that the tokenizer does not have.
    """
    return validation_batches(
        [part.rows for part in corpus.held_out],
        objective=ready.objective,
        sequence_length=rows.sequence_length,
        batch_size=rows.batch_size,
        tokenizer=ready.tokenizer,
        document_mask=rows.data.document_mask,
        mask_probability=rows.data.mask_probability,
        packing=rows.packing,
        max_rows=None if rows.batches is None else rows.batches * rows.batch_size,
    )


@frozen(kw_only=True)
class Measurement:
    """What a model knows of a text."""

    loss: float
    """Nats, mean over all targets, as in training."""
    perplexity: float | None
    """exp(loss)."""
    bits_per_byte: float | None
    """Cost of the tokens that stand for text, in bits, by the UTF-8 bytes that they stand for; None where a tokenizer does
    not work on bytes, and for an objective that does not predict a whole text."""
    accuracy: float | None
    """Share of the targets that are predicted right; None where the objective does not measure it."""
    targets: int
    """Tokens that were predicted."""
    text_bytes: int | None
    """Bytes of text that the targets stand for; end-of-text tokens stand for none."""
    tokens_per_s: float
    """Positions computed (padding too) by the time that it took; the first batch warms up unless it is the only one."""
    source_loss: Mapping[str, float | None] = field(factory=dict)
    """Nats, mean over the targets of each source that has a name; None where it has none."""


@frozen
class Sums:
    """The sums over some batches that a `Measurement` is made from."""

    text_nats: float = 0.0
    other_nats: float = 0.0
    text_bytes: int = 0
    targets: int = 0
    right: int = 0

    @property
    def loss(self) -> float | None:
        """Nats, mean over the targets; None without one."""
        return (self.text_nats + self.other_nats) / self.targets if self.targets else None

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.text_nats + other.text_nats,
            self.other_nats + other.other_nats,
            self.text_bytes + other.text_bytes,
            self.targets + other.targets,
            self.right + other.right,
        )


def forget(ready: Ready, *, seed: int = 0) -> None:
    """Put fresh values in place of all that the model has learnt, as a run from scratch begins with: a baseline."""
    cast(LanguageModel, ready.model).initialize(torch.Generator().manual_seed(seed))


def for_measuring(ready: Ready, *, compile: bool | None, say: Say) -> None:
    """Compile the model's blocks where that is asked for and can be; `say` is told where it cannot."""
    if not compile:
        return
    reason = compiler_fault(ready.device)
    if reason is None:
        compile_blocks(ready.model)
    else:
        say(f"the model is not compiled: {reason}")


@torch.no_grad()
def measure(ready: Ready, batches: Iterable[Batch], *, done: Callable[[int], None] | None = None) -> Measurement:
    """Run the model over the batches; `done` is told of each batch.

    Raises:
        DataError: when the batches hold no target.
    """
    if ready.device.type == "cpu":
        reuse_freed_memory()
    sizes = _byte_sizes(ready) if ready.objective.measures_bits_per_byte else None
    sums: list[tuple[str | None, Sums]] = []
    times: list[tuple[float, float]] = []
    first: torch.Size | None = None
    for batch in batches:
        start = time.perf_counter()
        first = first or batch.tokens.shape
        with nullcontext() if batch.tokens.shape == first else uncompiled():  # another shape would want a compilation
            sums.append((batch.source, sums_of(ready, batch.to(ready.device), sizes)))
        times.append((batch.tokens.numel(), time.perf_counter() - start))
        if done is not None:
            done(1)
    measured = _summary(_total(item for _, item in sums), times, ready.objective, in_bytes=sizes is not None)
    names = [name for name in dict.fromkeys(name for name, _ in sums) if name is not None]
    by_source = {name: _total(item for source, item in sums if source == name).loss for name in names}
    return attrs.evolve(measured, source_loss=by_source)


def _total(sums: Iterable[Sums]) -> Sums:
    return reduce(Sums.__add__, sums, Sums())


def _byte_sizes(ready: Ready) -> Tensor | None:
    """`[vocab]`: how many bytes of text each id stands for."""
    table = bytes_of_tokens(ready.tokenizer)
    if table is None:
        return None
    sizes = torch.zeros(max(ready.config.vocab_size, len(table)), dtype=torch.int64)
    sizes[: len(table)] = torch.tensor([len(text) for text in table])
    return sizes.to(ready.device)


def sums_of(ready: Ready, batch: Batch, sizes: Tensor | None) -> Sums:
    """What one batch adds; `sizes` is `[vocab]`, how many bytes of text each id stands for, where that is measured."""
    model = cast(LanguageModel, ready.model)
    with ready.precision.context(ready.device):
        hidden, targets = ready.objective.predicted(model, batch)
        stands = torch.zeros_like(targets) if sizes is None else sizes[targets.clamp(min=0)] * (targets != IGNORED)
        nats = token_nats(model, hidden, targets).double()
        text_nats, other_nats = (float(nats[chosen].sum()) for chosen in (stands > 0, stands == 0))
        right = int(right_predictions(model, hidden, targets)) if ready.objective.measures_accuracy else 0
    return Sums(text_nats, other_nats, int(stands.sum()), batch.target_count, right)


def _summary(sums: Sums, times: list[tuple[float, float]], objective: Objective, *, in_bytes: bool) -> Measurement:
    if sums.loss is None:
        raise DataError("the held-out rows have nothing to predict", where="--data", hint="Give more text.")
    known = in_bytes and sums.text_bytes > 0
    return Measurement(
        loss=sums.loss,
        perplexity=perplexity(sums.loss),
        bits_per_byte=sums.text_nats / math.log(2) / sums.text_bytes if known else None,
        accuracy=sums.right / sums.targets if objective.measures_accuracy else None,
        targets=sums.targets,
        text_bytes=sums.text_bytes if in_bytes else None,
        tokens_per_s=tokens_per_second(times),
    )

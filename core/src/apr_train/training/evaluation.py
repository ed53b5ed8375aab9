"""The loss on held-out rows, and the verdict on the weights before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import attrs
from attrs import field, frozen
from torch import nn

from apr_train import rules
from apr_train.checkpoint.reference import ReferenceLoss
from apr_train.data.batch import Batch
from apr_train.data.objectives import Objective
from apr_train.data.reference import ReferenceRows
from apr_train.errors import RunError
from apr_train.model.device import Precision
from apr_train.model.loss import head_loss, right_predictions
from apr_train.model.protocol import LanguageModel
from apr_train.model.sharding import computes_on
from apr_train.preflight.reference_rules import other_loss
from apr_train.training.examinee import examined
from apr_train.training.processes import Processes

_Sums = tuple[str | None, float, int, int]
"""Of one batch: its source, the sum of the losses, right predictions, targets."""


@frozen(kw_only=True)
class Validation:
    """A model's loss on some batches."""

    loss: float
    """Mean over the target tokens, nats."""
    accuracy: float | None
    """Share of right predictions; None where the objective does not measure it."""
    targets: int
    by_source: Mapping[str, float] = field(factory=dict)
    """Mean over the target tokens of each source that has a name."""


def held_out_loss(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    objective: Objective,
    precision: Precision,
    processes: Processes | None = None,
) -> Validation:
    """Measure without dropout and without gradients; the model is back in training mode afterwards.

    Of several processes, each measures its part of the rows of each batch, and all get what all have measured.

    Raises:
        RunError: when the batches hold no target.
    """
    device, processes = computes_on(model), processes or Processes()
    with examined(model):
        own = ((batch.source, batch.part(processes.share).to(device)) for batch in batches)
        sums = [(source, *_one(cast(LanguageModel, model), batch, objective, precision)) for source, batch in own]
    sums = _of_all(sums, processes)
    targets = sum(count for *_, count in sums)
    if targets == 0:
        raise RunError("the validation has nothing to predict", where="--val-batches")
    right = sum(right for _, _, right, _ in sums)
    accuracy = right / targets if objective.measures_accuracy else None
    by_source = {name: _mean(sums, name) for name in dict.fromkeys(name for name, *_ in sums) if name is not None}
    loss = math.fsum(loss for _, loss, _, _ in sums) / targets
    return Validation(loss=loss, accuracy=accuracy, targets=targets, by_source=by_source)


def _of_all(sums: Sequence[_Sums], processes: Processes) -> list[_Sums]:
    """Loss, right predictions and targets of each batch, summed over the processes that have its rows."""
    told = processes.everyone([(loss, right, count) for _, loss, right, count in sums])
    return [
        (source, math.fsum(part[0] for part in parts), sum(part[1] for part in parts), sum(part[2] for part in parts))
        for (source, *_), parts in zip(sums, zip(*told, strict=True), strict=True)
    ]


def _mean(sums: Sequence[_Sums], name: str) -> float:
    """The mean loss over the targets of one source; NaN where it has none."""
    own = [(loss, count) for source, loss, _, count in sums if source == name]
    targets = sum(count for _, count in own)
    return math.fsum(loss for loss, _ in own) / targets if targets else math.nan


def _one(model: LanguageModel, batch: Batch, objective: Objective, precision: Precision) -> tuple[float, int, int]:
    with precision.context(batch.tokens.device):
        hidden, targets = objective.predicted(model, batch)
        loss = head_loss(model, hidden, targets)
        right = int(right_predictions(model, hidden, targets)) if objective.measures_accuracy else 0
    return float(loss), right, batch.target_count


def judge_reference(
    model: nn.Module,
    rows: ReferenceRows,
    held: ReferenceLoss,
    *,
    precision: Precision,
    subject: str,
    allow: bool,
    processes: Processes | None = None,
) -> tuple[str, bool]:
    """Measure loaded weights on the reference text, and compare with what their file says.

    Returns:
        The verdict, and whether they agree.

    Raises:
        RunError: REFERENCE-001, unless `allow`.
    """
    measured = held_out_loss(model, rows.batches(), objective=rows.objective, precision=precision, processes=processes)
    device = computes_on(model).type
    found = other_loss(measured.loss, held, subject, device=device, precision=precision.name)
    if found is None:
        told = f"reference loss {measured.loss:.4f}, {held.loss:.4f} in the file"
        return f"{rules.REFERENCE_001}: {told}: the weights mean what they meant when they were measured", True
    if allow:
        return f"warning: {found} Going on, as --allow-cold-init says.", False
    raise RunError.of([attrs.evolve(found, hint=f"{found.hint} --allow-cold-init trains all the same.")])


def judge_start(loss: float, vocab_size: int, *, allow: bool, fresh: Sequence[str] = (), arrived: bool = False) -> str:
    """Decide from the loss at step 0 whether the weights of `--init` really arrived.

    The limit is min(6.0, ln(vocabulary) − 3.0): far below the loss of a model that has learnt nothing. Returns the verdict.
    `fresh` names the parameters that the file did not have: they are the likely reason. Weights that are known to have
    `arrived`, since they have the reference loss that their file holds, may be bad at this text.

    Raises:
        RunError: FALSIFY-APR-PRETRAIN-INIT-006, unless `allow`.
    """
    limit = min(6.0, math.log(vocab_size) - 3.0)
    if loss <= limit:
        return f"{rules.INIT_006}: validation loss {loss:.3f} at step 0, at most {limit:.3f} was asked: the weights arrived"
    problem = "the weights of --init predict no better than fresh ones"
    if arrived:
        measured = f"validation loss {loss:.3f} at step 0, limit {limit:.3f}"
        return f"warning: {rules.INIT_006}: {problem} ({measured}); they have their reference loss, so this text is new to them"
    if allow:
        measured = f"validation loss {loss:.3f} at step 0, limit {limit:.3f}"
        return f"{rules.INIT_006}: {problem} ({measured}); going on, as --allow-cold-init says"
    reason = f"The file has no {', '.join(fresh)}" if fresh else "It may be the wrong tokenizer or file"
    raise RunError(
        problem,
        rule=rules.INIT_006,
        where="step 0",
        expected=f"a validation loss of at most {limit:.3f}",
        found=f"{loss:.3f} (uniform guessing: {math.log(vocab_size):.3f})",
        hint=f"{reason}; --allow-cold-init trains all the same.",
    )

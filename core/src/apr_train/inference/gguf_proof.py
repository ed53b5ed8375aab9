"""What a quantised GGUF lost of its source: perplexity and top-1 agreement on a text that neither was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import attrs
import torch
from attrs import frozen
from torch import Tensor

from apr_train.artifact.convert import Conversion
from apr_train.artifact.gguf.reopened import Reopened
from apr_train.data.batch import IGNORED
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.reference import SHA256, ReferenceRows, reference_rows
from apr_train.errors import TokenizerError
from apr_train.inference.ready import Opened, Ready, Wanted, make_ready
from apr_train.model.loss import head_loss
from apr_train.model.protocol import LanguageModel
from apr_train.run.metrics import perplexity

PRECISION = "fp32"
_ROWS_AT_ONCE = 256
"""Positions whose logits are in memory at a time."""


@frozen(kw_only=True)
class QuantisationLoss:
    """What a quantised model computes beside its source, in float32 on the package's reference text."""

    source_perplexity: float
    perplexity: float
    top1_agreement: float
    """Share of the positions at which both find the same token the most likely."""
    targets: int
    """Positions that were compared."""
    text_sha256: str

    def to_card(self) -> dict[str, Any]:
        """The numbers as they stand in a card."""
        rounded = {name: round(getattr(self, name), 6) for name in ("source_perplexity", "perplexity", "top1_agreement")}
        return attrs.asdict(self) | rounded


def measure_quantisation(
    conversion: Conversion, again: Reopened, *, device: str = "cpu", done: Callable[[int], None] | None = None
) -> QuantisationLoss:
    """Run the source over the reference text, then the quantised file; one model is in memory at a time.

    Args:
        conversion: the source, open.
        again: the file that was written from it, open.
        device: where it is computed.
        done: told of each row of each of the two.

    Raises:
        TokenizerError: the source has no tokenizer to read a text with.
        DataError: the reference text is not the one of this version.
    """
    source = _opened(conversion, device)
    loss, chosen = _run(make_ready(source, precision=PRECISION), done)
    written = attrs.evolve(source, checkpoint=again.checkpoint, plan=again.plan)
    other_loss, others = _run(make_ready(written, precision=PRECISION), done)
    return QuantisationLoss(
        source_perplexity=_perplexity(loss),
        perplexity=_perplexity(other_loss),
        top1_agreement=float((chosen == others).double().mean()),
        targets=len(chosen),
        text_sha256=SHA256,
    )


def _opened(conversion: Conversion, device: str) -> Opened:
    header = conversion.header
    if header.tokenizer is None:
        hint = "Export with --no-verify to leave the measurement out, or give the source a tokenizer.json."
        raise TokenizerError("there is no tokenizer to read a text with", where=header.path, hint=hint)
    objective = next(item for item in OBJECTIVES.values() if item.predicts == conversion.family.info.objectives[0])
    return Opened(
        wanted=Wanted(path=header.path),
        checkpoint=conversion.checkpoint,
        header=header,
        family=conversion.family,
        config=conversion.config,
        objective=objective,
        plan=conversion.plan,
        tokenizer=header.tokenizer,
        device=torch.device(device),
    )


@torch.no_grad()
def _run(ready: Ready, done: Callable[[int], None] | None) -> tuple[float, Tensor]:
    """The mean loss, and the most likely token at each position that counts: `[targets]` int64."""
    model, rows = cast(LanguageModel, ready.model), _rows(ready)
    nats, chosen = 0.0, []
    for batch in rows.batches():
        hidden, targets = ready.objective.predicted(model, batch.to(ready.device))
        nats += float(head_loss(model, hidden, targets))
        there = hidden[targets != IGNORED]
        chosen += [model.logits(part).argmax(-1).cpu() for part in torch.split(there, _ROWS_AT_ONCE)]
        if done is not None:
            done(1)
    best = torch.cat(chosen)
    return nats / len(best), best


def _rows(ready: Ready) -> ReferenceRows:
    return reference_rows(ready.objective, ready.tokenizer, positions=ready.config.usable_positions)


def _perplexity(loss: float) -> float:
    """The card's number: infinite where the loss has none."""
    found = perplexity(loss)
    return math.inf if found is None else found

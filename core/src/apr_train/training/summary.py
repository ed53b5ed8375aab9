"""What a run says at its start and at its end."""

from __future__ import annotations

import shlex

from apr_train.run.folder import CARD, METRICS, MODEL
from apr_train.run.metrics import Metrics, mean_speed
from apr_train.training.loop import Outcome
from apr_train.training.setup import Prepared


def opening(prepared: Prepared) -> dict[str, str]:
    """What is about to happen, as labelled lines."""
    run, family = prepared.run, prepared.report.family
    settings, corpus = run.settings, prepared.corpus
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    data = settings.data
    per_step = (data.batch_size or 1) * (data.sequence_length or 1) * data.accumulate
    origin = settings.model.init or f"from scratch, preset {settings.model.preset}"
    lines = {
        "family": f"{settings.model.arch} ({family.distribution} {family.version})" if family else str(settings.model.arch),
        "model": f"{parameters:,} parameters, {origin}",
        "weights": str(prepared.loaded) if prepared.loaded else "freshly initialised",
        "attention": str(prepared.attention),
        "data": f"{corpus.description}: {len(corpus.train):,} tokens, {len(corpus.validation):,} held out",
        "step": f"{data.batch_size} × {data.sequence_length} tokens × {data.accumulate} = {per_step:,}; "
        f"{run.objective}, {run.precision.name} on {run.device}, {settings.run.threads} threads",
        "optimizer": f"AdamW, {settings.optimizer.schedule} from {settings.optimizer.lr:g}, {settings.run.steps} steps",
        "folder": str(run.folder),
    }
    if run.step:
        lines["resumed"] = f"at step {run.step}"
    return lines


def closing(prepared: Prepared, lines: list[Metrics], outcome: Outcome) -> dict[str, str]:
    """What came of it, from all lines of metrics.jsonl."""
    run = prepared.run
    if outcome.stopped_by is not None:
        saved = f"after step {run.step} of {run.settings.run.steps}; everything is saved"
        return {
            "stopped": f"by {outcome.stopped_by} {saved if run.step else 'before step 1: nothing to save yet'}",
            "go on with": f"apr-train --resume {shlex.quote(str(run.folder))}",
        }
    told = {}
    measured = [line for line in lines if line.val_loss is not None]
    if measured:
        told["validation loss"] = f"{measured[0].val_loss:.4f} → {measured[-1].val_loss:.4f}"
    if (speed := mean_speed(lines)) is not None:
        told["speed"] = f"{speed:,.0f} tokens/s"
    told["model"] = str(run.folder / MODEL)
    told["card"] = str(run.folder / CARD)
    told["metrics"] = str(run.folder / METRICS)
    return told

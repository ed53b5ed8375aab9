"""What a run shows: its opening lines, a live line on a terminal or a plain line every few steps, its closing lines."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from apr_train.run.events import RunEvents
from apr_train.run.folder import CARD, METRICS, MODEL
from apr_train.run.metrics import Metrics, mean_speed
from apr_train.run.units import size

if TYPE_CHECKING:
    from rich.console import Console

    from apr_train.data.corpus import Part
    from apr_train.training.loop import Outcome
    from apr_train.training.run import Run
    from apr_train.training.setup import Prepared


def opening(prepared: Prepared) -> dict[str, str]:
    """The lines of a run's start, label → text: what is trained, from where, on what, and how."""
    run, family = prepared.run, prepared.inputs.cleared.family
    settings, corpus = run.settings, prepared.inputs.corpus
    parameters = parameters_of(run)
    data = settings.data
    per_step = (data.batch_size or 1) * (data.sequence_length or 1) * data.accumulate
    origin = settings.model.init or f"from scratch, preset {settings.model.preset}"
    tokens = f"{corpus.learnt_tokens:,} tokens to learn from, {corpus.held_out_tokens:,} more held out"
    lines = {
        "family": f"{settings.model.arch} ({family.distribution} {family.version})" if family else str(settings.model.arch),
        "model": f"{parameters:,} parameters, {origin}",
        "weights": str(prepared.loaded) if prepared.loaded else "freshly initialised",
        **adapter_lines(prepared),
        "attention": str(prepared.attention),
        "data": f"{corpus.description}: {tokens}",
        **{f"source {part.name}": _part(part, run.stream.shares) for part in corpus.learnt if part.name is not None},
        "step": f"{data.batch_size} × {data.sequence_length} tokens × {data.accumulate} = {per_step:,}; "
        f"{run.objective.name}, {run.precision.name} on {run.device}, {settings.run.threads} threads",
        "optimizer": f"AdamW, {settings.optimizer.schedule} from {settings.optimizer.lr:g}, {settings.run.steps} steps",
        "folder": str(run.folder),
    }
    if run.processes.told is not None:
        lines["processes"] = run.processes.told
    if run.stream.told is not None:
        lines["packing"] = run.stream.told
    if run.step:
        lines["resumed"] = f"at step {run.step}"
    return lines


def parameters_of(run: Run) -> int:
    """Those of the model; adapters on it come on top."""
    adapted = run.settings.lora.lora_rank is not None
    return sum(item.numel() for item in run.model.parameters() if not (adapted and item.requires_grad))


def adapter_lines(prepared: Prepared) -> dict[str, str]:
    """The line about adapters, of a run that trains some."""
    lora, model = prepared.run.settings.lora, prepared.run.model
    if lora.lora_rank is None:
        return {}
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    where = ", ".join(lora.lora_target or prepared.inputs.cleared.family.info.adapter_targets) or "all matrices of the blocks"
    counts = f"{trained:,} parameters trained, {parameters_of(prepared.run):,} frozen"
    return {"adapters": f"LoRA of rank {lora.lora_rank}, alpha {lora.lora_alpha:g}, on {where}: {counts}"}


def _part(part: Part, shares: Mapping[str, float]) -> str:
    """A source of a mixture: its share of the rows, its tokens, and how often it is gone through at most."""
    most = part.source.max_epochs
    often = "" if most is None else f", {most} epoch{'s' * (most != 1)} at most"
    return f"{shares[part.name or '']:.1%} of the rows, {len(part.tokens):,} tokens{often}"


def closing(prepared: Prepared, lines: list[Metrics], outcome: Outcome) -> dict[str, str]:
    """The lines of a run's end, label → text; `lines` are all of metrics.jsonl, which a stopped run does not need."""
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
    told["model" if run.result == MODEL else "adapter"] = str(run.folder / Path(run.result).parts[0])
    told["card"] = str(run.folder / CARD)
    told["metrics"] = str(run.folder / METRICS)
    return told


def step_line(line: Metrics, steps: int) -> str:
    """`step 12/30  loss 2.104  lr 3.1e-05  grad 1.32  812 tokens/s  1.9 GB  val 2.051 (perplexity 7.78)`."""
    parts = [f"step {line.step}/{steps}"]
    if line.loss is not None:
        parts += [f"loss {line.loss:.4f}", *([] if line.aux_loss is None else [f"aux {line.aux_loss:.3f}"])]
        parts += [f"lr {line.lr:.2e}", f"grad {line.grad_norm:.3f}"]
        parts += [f"{line.tokens_per_s:,.0f} tokens/s", size(line.memory)]
    if line.val_loss is not None:
        shown = f"{line.perplexity:.2f}" if line.perplexity is not None else "out of range"
        parts.append(f"val {line.val_loss:.4f} (perplexity {shown})")
        parts += [f"{name} {value:.4f}" for name, value in (line.source_val_loss or {}).items()]
    if line.val_accuracy is not None:
        parts.append(f"accuracy {line.val_accuracy:.1%}")
    if line.eval_fim_loss is not None and line.eval_fim_exact is not None:
        parsed = "" if line.eval_fim_parsed is None else f", {line.eval_fim_parsed:.1%} parse"
        parts.append(f"fim {line.eval_fim_loss:.4f} ({line.eval_fim_exact:.1%} exact{parsed})")
    if line.eval_syntax is not None:
        parts.append(f"syntax {line.eval_syntax:.1%}")
    return "  ".join(parts)


class PlainDisplay:
    """Lines on standard output: the first step, every `every`-th, the last one, and each validation."""

    def __init__(self, steps: int, every: int) -> None:
        self._steps, self._every = steps, every

    def say(self, text: str) -> None:
        """Print it."""
        click.echo(text)

    def step(self, line: Metrics) -> None:
        """Print it when it is its turn."""
        if line.step in (0, 1, self._steps) or line.step % self._every == 0 or line.val_loss is not None:
            click.echo(step_line(line, self._steps))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class LiveDisplay:
    """A progress bar with the last step's numbers under the validations; on stdout, as the plain lines are."""

    def __init__(self, steps: int, done: int, console: Console | None = None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._steps = steps
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task(f"step {done}/{steps}", total=steps, completed=done)

    def say(self, text: str) -> None:
        """Print it above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def step(self, line: Metrics) -> None:
        """Move the bar; validations stay as lines."""
        text = step_line(line, self._steps)
        self._progress.update(self._task, completed=line.step, description=text)
        if line.val_loss is not None:
            self.say(text)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()


def make_display(steps: int, *, done: int, every: int) -> RunEvents:
    """Live on a terminal, plain lines in a pipe or a file."""
    return LiveDisplay(steps, done) if sys.stdout.isatty() else PlainDisplay(steps, every)

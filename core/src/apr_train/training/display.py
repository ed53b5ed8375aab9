"""What a run shows: its opening lines, a live line on a terminal or a plain line every few steps, its closing lines."""

from __future__ import annotations

import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from apr_train.data.special_tokens import special_id
from apr_train.errors import printable
from apr_train.family.adapter_sites import is_of_adapter
from apr_train.run.course import course
from apr_train.run.events import RunEvents, Say
from apr_train.run.folder import CARD, METRICS, MODEL
from apr_train.run.machine import Machine
from apr_train.run.metrics import Metrics, mean_mfu, mean_speed
from apr_train.run.terminal import broken, columns, is_drawn_on
from apr_train.run.units import operations, size
from apr_train.training.optimizer.told import optimizer_lines

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

    from apr_train.data.corpus import Part
    from apr_train.training.loop import Outcome
    from apr_train.training.run import Run
    from apr_train.training.setup import Prepared


def opening(prepared: Prepared) -> dict[str, str]:
    """The lines of a run's start, label → text: what is trained, from where, on what, and how."""
    run, family = prepared.run, prepared.inputs.cleared.family
    settings, corpus = run.settings, prepared.inputs.corpus
    threads = settings.run.threads
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
        f"{run.objective.name}, {run.precision.name} on {run.device}, {threads} thread{'s' * (threads != 1)}",
        **optimizer_lines(run.model, run.optimizer, run.settings),
        **_machine_line(run.machine),
        "folder": str(run.folder),
    }
    if run.processes.told is not None:
        lines["processes"] = run.processes.told
    if run.stream.told is not None:
        lines["packing"] = run.stream.told
    if run.step:
        lines["resumed"] = f"at step {run.step}"
    return lines


def _machine_line(machine: Machine | None) -> dict[str, str]:
    """What the device could do, and what a token needs."""
    if machine is None or machine.flops is None:
        return {}
    needed = f"{operations(machine.flops.of_step(1, 1))} a token, forward and backward"
    if machine.peak is None:
        return {"machine": f"{machine.device}, whose peak is not known (--peak-tflops says it, for an MFU); {needed}"}
    return {"machine": f"{machine.device}, {machine.peak} at most; {needed}"}


def parameters_of(run: Run) -> int:
    """Those of the model; adapters on it come on top."""
    return sum(item.numel() for name, item in run.model.named_parameters() if not is_of_adapter(name))


def adapter_lines(prepared: Prepared) -> dict[str, str]:
    """The line about adapters, of a run that trains some."""
    lora, model = prepared.run.settings.lora, prepared.run.model
    if lora.lora_rank is None:
        return {}
    trained, still = (
        sum(item.numel() for item in model.parameters() if item.requires_grad is wanted) for wanted in (True, False)
    )
    where = ", ".join(lora.lora_target or prepared.inputs.cleared.family.info.adapter_targets) or "all matrices of the blocks"
    counts = f"{trained:,} parameters trained, {still:,} frozen"
    return {"adapters": f"LoRA of rank {lora.lora_rank}, alpha {lora.lora_alpha:g}, on {where}: {counts}"}


def _part(part: Part, shares: Mapping[str, float]) -> str:
    """A source of a mixture: its share of the rows, its tokens, and how often it is gone through at most."""
    most = part.source.max_epochs
    often = "" if most is None else f", {most} epoch{'s' * (most != 1)} at most"
    return f"{shares[part.name or '']:.1%} of the rows, {len(part.tokens):,} tokens{often}"


def closing(prepared: Prepared, lines: list[Metrics], outcome: Outcome) -> dict[str, str]:
    """The lines of a run's end, label → text; `lines` are all of metrics.jsonl, which a stopped run does not need."""
    run = prepared.run
    go_on = f"apr-train --resume {shlex.quote(str(run.folder))}"
    if outcome.stopped_by is not None:
        saved = f"after step {run.step} of {run.settings.run.steps}; everything is saved"
        return {
            "stopped": f"by {outcome.stopped_by} {saved if run.step else 'before step 1: nothing to save yet'}",
            "go on with": go_on,
        }
    told = {}
    if outcome.ended_by is not None:
        told["ended"] = f"by {outcome.ended_by}, after step {run.step} of {run.settings.run.steps}; everything is saved"
        told["go on with"] = go_on
    measured = [line for line in lines if line.val_loss is not None]
    if measured:
        told["validation loss"] = f"{measured[0].val_loss:.4f} → {measured[-1].val_loss:.4f}"
    told |= course(lines, run.settings, run.best(), run.changes)
    if (speed := mean_speed(lines)) is not None:
        mfu = mean_mfu(lines)
        share = "" if mfu is None else f", {mfu:.1%} of the machine's peak (MFU)"
        told["speed"] = f"{speed:,.0f} tokens/s{share}"
    told["model" if run.result == MODEL else "adapter"] = f"{run.folder / Path(run.result).parts[0]}{_which(run, told)}"
    told["card"] = str(run.folder / CARD)
    told["metrics"] = str(run.folder / METRICS)
    return told


def _which(run: Run, told: Mapping[str, str]) -> str:
    """Which weights the result has, where there are others to be had."""
    of = f", of step {run.step}" if "best" in told else ""
    return of + (", the averaged weights" if "averaged" in told else "")


def next_commands(prepared: Prepared) -> list[str]:
    """What to do with the result of a run: commands as they can be given, from where the run was."""
    run = prepared.run
    folder = shlex.quote(str(run.folder))
    result = f"export {folder} -o exported" if run.result == MODEL else f"merge {folder} -o merged.apr"
    return [
        f"apr-train {command}"
        for command in (f"generate {folder} {_question(prepared)}", f"eval {folder}", f"report {folder} -o report.html", result)
    ]


def _question(prepared: Prepared) -> str:
    """What a model of the run's objective can be asked."""
    objective, tokenizer = prepared.run.objective, prepared.inputs.tokenizer
    if objective.kind == "encoder":
        mask = tokenizer.token(special_id(tokenizer, "mask", "an encoder fills it"))
        return f"--fill-mask {shlex.quote(f'def {mask}(x):')}"
    if objective.source_kinds[0] == "chat":
        return "--chat"
    if "middle" in objective.special_tokens:
        return "--prefix 'def add(a, b): return ' --suffix '# the sum'"
    return "--prompt 'def fib(n):'"


def step_line(line: Metrics, steps: int) -> str:
    """`step 12/30  loss  2.1040  lr 3.10e-05  grad   1.320      812 tokens/s  mfu  23%    1.9 GB  val 2.0510 (…)`."""
    return "  ".join([*figures(line, steps).values(), *_measured(line)])


def figures(line: Metrics, steps: int) -> dict[str, str]:
    """What a step did, by name; each as wide as in every other line of the run, so that figures keep their column."""
    shown = {"step": f"step {line.step:>{len(str(steps))}}/{steps}"}
    if line.loss is None:
        return shown
    shown["loss"] = f"loss {_wide(line.loss, 4, 7)}"
    if line.aux_loss is not None:
        shown["aux"] = f"aux {_wide(line.aux_loss, 3, 6)}"
    shown["lr"] = f"lr {line.lr:.2e}"
    if line.grad_norm is not None:
        shown["grad"] = f"grad {_wide(line.grad_norm, 3, 7)}"
    if line.skipped:
        shown["skipped"] = "skipped"
    if line.tokens_per_s is not None:
        shown["speed"] = f"{line.tokens_per_s:>7,.0f} tokens/s"
    if line.mfu is not None:
        shown["mfu"] = f"mfu {line.mfu:4.{int(line.mfu < 0.0995)}%}"
    shown["memory"] = f"{size(line.memory):>8}"
    return shown


def _wide(value: float, decimals: int, width: int) -> str:
    """So many decimals, or as many as there is room for."""
    whole = len(f"{value:.0f}")
    return f"{value:>{width}.{max(0, min(decimals, width - whole - 1))}f}"


def _measured(line: Metrics) -> list[str]:
    """What a validation measured."""
    parts = []
    if line.val_loss is not None:
        perplexity = f"{line.perplexity:.2f}" if line.perplexity is not None else "out of range"
        parts.append(f"val {line.val_loss:.4f} (perplexity {perplexity})")
    parts += [] if line.trained_val_loss is None else [f"without averaging {line.trained_val_loss:.4f}"]
    parts += [f"{name} {value:.4f}" for name, value in (line.source_val_loss or {}).items()]
    if line.val_accuracy is not None:
        parts.append(f"accuracy {line.val_accuracy:.1%}")
    if line.eval_fim_loss is not None and line.eval_fim_exact is not None:
        parsed = "" if line.eval_fim_parsed is None else f", {line.eval_fim_parsed:.1%} parse"
        parts.append(f"fim {line.eval_fim_loss:.4f} ({line.eval_fim_exact:.1%} exact{parsed})")
    if line.eval_syntax is not None:
        parts.append(f"syntax {line.eval_syntax:.1%}")
    return parts


class PlainDisplay:
    """Lines on standard output: the first step, every `every`-th, the last one, and each validation."""

    def __init__(self, steps: int, every: int) -> None:
        self._steps, self._every = steps, every

    def say(self, text: str) -> None:
        """Print it; on a terminal it breaks at words."""
        click.echo(broken(printable(text, lines=True), columns(sys.stdout), indent=_INDENT))

    def step(self, line: Metrics) -> None:
        """Print it when it is its turn."""
        if line.step in (0, 1, self._steps) or line.step % self._every == 0 or line.val_loss is not None:
            self.say(step_line(line, self._steps))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class NoDisplay:
    """Draws no step; what is said goes to whoever asked for the run."""

    def __init__(self, say: Say) -> None:
        self.say = say

    def step(self, line: Metrics) -> None:
        """Leave it to metrics.jsonl and to the trackers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


_INDENT = 2
"""Columns in front of what continues a line."""
_GAP = "  "
_IMPORTANT = ("step", "loss", "left", "speed", "mfu", "bar", "lr", "grad", "memory", "aux")
"""What a terminal has room for, the first before the others."""
_SHOWN = ("step", "loss", "aux", "bar", "left", "speed", "mfu", "lr", "grad", "memory")
"""In which order it stands there."""
_BAR_LEAST, _BAR_MOST = 8, 40


def fitted(parts: Mapping[str, str], share: float, width: int) -> str:
    """One line of parts, as many of them as fit into `width` columns, the most important ones first.

    Args:
        parts: by the names of `_IMPORTANT`; a bar is made of the columns that are left.
        share: how much of the bar is full, from 0 to 1.
    """
    chosen, used = set(), -len(_GAP)
    for name in _IMPORTANT:
        needed = _BAR_LEAST if name == "bar" else len(parts.get(name, ""))
        if needed and used + len(_GAP) + needed <= width:
            chosen.add(name)
            used += len(_GAP) + needed
    bar = min(_BAR_MOST, _BAR_LEAST + width - used)
    drawn = {**parts, "bar": "━" * round(share * bar) + "─" * (bar - round(share * bar))}
    return _GAP.join(drawn[name] for name in _SHOWN if name in chosen)[:width]


class _TimeLeft:
    """How long the steps to come will take, by the last ones: a mean over the time between their ends."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque([clock()], maxlen=50)
        self._warm = False

    def tick(self) -> None:
        """A step has ended. The first interval, in which everything is warmed up, counts only as long as it is alone."""
        if len(self._ends) == 2 and not self._warm:
            self._ends.popleft()
            self._warm = True
        self._ends.append(self._clock())

    def __call__(self, steps: int) -> float | None:
        """Seconds until so many steps more are done; None while none has ended."""
        if len(self._ends) < 2:
            return None
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return max(0.0, each * steps - (self._clock() - self._ends[-1]))


def _clock_time(seconds: float | None) -> str:
    """`1:02:03 left`, in as many columns whatever it is."""
    if seconds is None:
        return f"{'-:--:--':>8} left"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02d}:{rest:02d}" if hours < 100 else f"{hours // 24} d {hours % 24:02d} h"
    return f"{text:>8} left"


class LiveDisplay:
    """One line under what stays, drawn anew all the time: the last step's numbers and the time left, as far as there is room.

    On standard output, as the plain lines are. What stays are notices and validations. At the end the line is taken away.
    """

    def __init__(self, steps: int, done: int, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._steps, self._last = steps, Metrics(step=done)
        self._doing = "measuring the loss that the run starts from" if done == 0 else "going on"
        self._left = _TimeLeft()
        self._live = Live(self, console=console or Console(), transient=True, refresh_per_second=4)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        parts = figures(self._last, self._steps)
        if self._last.loss is None:
            line = _GAP.join([parts["step"], f"{self._doing} …"])
        else:
            parts["left"] = _clock_time(self._left(self._steps - self._last.step))
            line = fitted(parts, self._last.step / max(1, self._steps), options.max_width)
        yield Text(line, no_wrap=True, overflow="ellipsis")

    def say(self, text: str) -> None:
        """Print it above the line, broken at words."""
        from rich.text import Text

        console = self._live.console
        console.print(Text(broken(printable(text, lines=True), console.width, indent=_INDENT)), soft_wrap=True)

    def step(self, line: Metrics) -> None:
        """Show its numbers; what a validation measured stays."""
        if line.loss is not None:
            self._left.tick()
            self._last = line
        else:
            self._doing = "taking the first step"
        if measured := _measured(line):
            shown = figures(line, self._steps)
            self.say(_GAP.join([*(shown[name] for name in ("step", "loss") if name in shown), *measured]))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()


def make_display(steps: int, *, done: int, every: int) -> RunEvents:
    """Live on a terminal; plain lines in a pipe, a file, on a dumb terminal, and where `NO_COLOR` asks for them."""
    return LiveDisplay(steps, done) if is_drawn_on(sys.stdout) else PlainDisplay(steps, every)

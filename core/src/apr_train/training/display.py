"""What a run says while it goes: a live line on a terminal, a plain line every few steps otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from apr_train.data.protocols import Progress
from apr_train.run.metrics import Metrics
from apr_train.run.units import size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Display(Protocol):
    """Where the loop reports to; a context manager."""

    def say(self, text: str) -> None:
        """One message that stays."""
        ...

    def step(self, line: Metrics) -> None:
        """A finished step."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A bar on stderr for work that counts bytes, which appears with the first count; None where there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            task = tasks[stage] if stage in tasks else tasks.setdefault(stage, bar.add_task(stage, total=total))
            bar.update(task, completed=done, total=total)

        yield report


def describe(line: Metrics, steps: int) -> str:
    """`step 12/30  loss 2.104  lr 3.1e-05  grad 1.32  812 tokens/s  1.9 GB  val 2.051 (perplexity 7.78)`."""
    parts = [f"step {line.step}/{steps}"]
    if line.loss is not None:
        parts += [f"loss {line.loss:.4f}", f"lr {line.lr:.2e}", f"grad {line.grad_norm:.3f}"]
        parts += [f"{line.tokens_per_s:,.0f} tokens/s", size(line.memory)]
    if line.val_loss is not None:
        shown = f"{line.perplexity:.2f}" if line.perplexity is not None else "out of range"
        parts.append(f"val {line.val_loss:.4f} (perplexity {shown})")
    if line.val_accuracy is not None:
        parts.append(f"accuracy {line.val_accuracy:.1%}")
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
            click.echo(describe(line, self._steps))

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
        text = describe(line, self._steps)
        self._progress.update(self._task, completed=line.step, description=text)
        if line.val_loss is not None:
            self.say(text)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()


def make_display(steps: int, *, done: int, every: int) -> Display:
    """Live on a terminal, plain lines in a pipe or a file."""
    return LiveDisplay(steps, done) if sys.stdout.isatty() else PlainDisplay(steps, every)

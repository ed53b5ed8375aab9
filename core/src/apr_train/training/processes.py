"""The processes of a run, as the rest of the trainer sees them: one value whose operations say what all do together.

`Processes` is a process alone: each operation is what it does by itself, and nothing is exchanged. Several are a
`training.process_group.Group`, which has the same operations. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from apr_train.data.batch import Share
from apr_train.errors import ConfigError
from apr_train.run.events import RunEvents, Say
from apr_train.run.metrics import Metrics, MetricsFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from apr_train.run.settings import Settings
    from apr_train.training.signals import StopRequest
    from apr_train.training.writing import Writing

T = TypeVar("T")
Whole: TypeAlias = "Callable[[Tensor], Tensor]"
"""Gives all of a tensor of which several processes each have a piece, one alone the tensor itself."""


class ToldElsewhereError(Exception):
    """The end of a process because of a fault that another one tells; nothing is left to say here."""

    def __init__(self, exit_code: int = 1) -> None:
        super().__init__("another process says why")
        self.exit_code = exit_code


class Processes:
    """One process, which is all there are."""

    rank = 0
    size = 1
    several = False
    """Whether a launcher has started it; then it may still be the only one."""

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """Its part of the rows of a batch."""
        return Share(number=self.rank, of=self.size)

    @property
    def told(self) -> str | None:
        """What a user should know of the processes; None of one alone."""
        return None

    # Together, before anything is trained

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Do the same on all: first on the first process, then on one of each other machine, then on the others.

        What is written down on the way, the tokens of a corpus, say, is made once a machine; nobody's waiting is timed.

        Raises:
            AprTrainError: on the first process, what went wrong on any; on the others `ToldElsewhereError`.
        """
        yield

    def begun(self, resume: Path | None, settings: Callable[[], Settings]) -> Path | None:
        """The run to go on with: what the user named, or, after a restart by the launcher, the run that this launch began."""
        return resume

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Refuse processes that differ in a fact from the first one.

        Raises:
            RunError: on the first, naming every fact and both machines; on the others `ToldElsewhereError`.
        """

    def connect(self, settings: Settings) -> None:
        """Make ready for all that follows, which exchanges tensors.

        Raises:
            ConfigError: for what a process that no launcher started cannot do.
        """
        if settings.processes.offload:
            hint = "One process is enough: torchrun --standalone --nproc-per-node 1 -m apr_train …"
            raise ConfigError("parameters are offloaded under torchrun only", where="--offload", found="no launcher", hint=hint)

    def answer(self, function: Callable[[], str]) -> str:
        """What a function gives on the first process, which alone calls it."""
        return function()

    def note_launch(self, folder: Path) -> None:
        """Write into a new run's folder which launch it is of, so that a launcher that restarts it goes on with it."""

    def once_a_machine(self, name: str, function: Callable[[], T]) -> T:
        """What a function gives, JSON-able, called by the first process of a machine; the others wait, however long that is."""
        return function()

    def shard(self, model: nn.Module, products: torch.dtype | None) -> None:
        """Spread a model's parameters over the processes, as the settings say; `products` as in `apr_train.model.sharding`."""

    # Together, step by step

    def total(self, *counts: int) -> tuple[int, ...]:
        """Sums over all processes."""
        return counts

    def sums(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Sums over all processes, of scalars."""
        return values

    def losses(self) -> dict[str, Tensor]:
        """Where a model writes the losses of a pass."""
        return {}

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Give each tensor its sum over all processes, in place, by one exchange; float32."""

    def norm(self, pieces: Tensor, whole: Tensor) -> Tensor:
        """The norm of what is spread over the processes, and of what all have.

        Args:
            pieces: the norm of the pieces that are here.
            whole: that of what every process has, the same on all.
        """
        return whole

    def span(self, value: float) -> tuple[float, float]:
        """The least and the largest over all processes."""
        return value, value

    def measured(self, spread: float) -> dict[str, Any]:
        """Fields of a step's metrics that a process alone does not have; `spread` is that of the step's times, in seconds."""
        return {}

    def everyone(self, value: T) -> list[T]:
        """What each process has to say, JSON-able, by rank."""
        return [value]

    def first_says(self, value: T) -> T:
        """The first process's value, JSON-able: what depends on a clock or a folder is decided by one for all."""
        return value

    def stopped_by(self, stop: StopRequest) -> str | None:
        """The signal by which any process was asked to stop, the same answer on all; `stop` knows it afterwards."""
        return stop.name

    def draw_by(self, *place: int) -> None:
        """Let what is drawn from here on, dropout, depend on a place in the run and not on what was drawn before.

        A process alone goes on drawing as it did, and keeps the state of its generators.
        """

    # Where only one speaks

    def say(self, say: Say) -> Say:
        """Say it once, on the first process."""
        return say

    def metrics(self, path: Path) -> MetricsFile | Unheard:
        """metrics.jsonl, which the first process writes."""
        return MetricsFile(path)

    def display(self, make: Callable[[], RunEvents]) -> RunEvents:
        """What shows the run, on the first process."""
        return make()

    def write(self, function: Callable[[], T]) -> T | None:
        """Call a function on the first process only; the others wait, and get None.

        Raises:
            Exception: what the function raises, on the first; on the others `ToldElsewhereError`.
        """
        return function()

    def write_tensors(self, function: Callable[[Whole], T], tensors: Sequence[Tensor]) -> T | None:
        """`write` with a function that may ask for all of each of some tensors, in any order, any number of times.

        Args:
            function: is given what makes a tensor whole.
            tensors: the same ones on all processes, in the same order.
        """
        return function(lambda tensor: tensor)

    def write_behind(self, function: Callable[[Whole], object], tensors: Sequence[Tensor]) -> Writing:
        """`write_tensors` with the tensors as they are now, by a thread: this returns when they are copied."""
        from apr_train.training.writing import Writing, copied_pieces  # imports torch

        known = list(tensors)
        copies = {id(tensor): copy for tensor, copy in zip(known, copied_pieces(known), strict=True)}
        return Writing(lambda: function(lambda tensor: copies[id(tensor)]))

    def has_room(self, tensors: Sequence[Tensor]) -> bool:
        """Whether memory is free for the copies of `write_behind`; the same answer on all."""
        from apr_train.training.writing import bytes_to_copy, has_room  # imports torch

        return has_room(bytes_to_copy(tensors))

    def is_settled(self, writing: Writing, *, wait: bool) -> bool:
        """Whether all is written by now, the same answer on all; `wait`: until it is.

        Raises:
            Exception: what the function raised, on the first; on the others `ToldElsewhereError`.
        """
        if wait:
            writing.wait()
        if writing.is_over and writing.error is not None:
            raise writing.error
        return writing.is_over

    def give_up(self, writing: Writing, error: BaseException) -> None:
        """Before this process ends by an error: let what is being written become whole, if it still can."""
        writing.wait()


class Unheard:
    """The display and the metrics of a process that is not the first: nobody sees them."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def step(self, line: Metrics) -> None:
        """Show nothing."""

    def write(self, metrics: Metrics) -> None:
        """Write nothing."""

    def sync(self) -> None:
        """Nothing is on its way."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

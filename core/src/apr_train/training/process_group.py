"""Several processes, started by torchrun: what they say to each other, what they sum, and how they end together.

Two ways lead from one to the others. Words go through the launcher's store as JSON, and whoever owes one has time, for the
first process may read a corpus for an hour, as long as it gives signs of life. Tensors go through torch's process group, gloo
on CPUs and nccl on CUDA, where whoever waits longer than `--timeout` gives up.
"""

from __future__ import annotations

import platform
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from apr_train.errors import AprTrainError, ConfigError, Finding, RunError
from apr_train.model.moe import Losses
from apr_train.model.sharding import make_mesh, over_all, shard
from apr_train.run.events import RunEvents, Say
from apr_train.run.folder import find_checkpoint
from apr_train.run.launch import Launch, note_launch, replicas, run_of_launch
from apr_train.run.metrics import MetricsFile
from apr_train.run.option import PATH, TABLES
from apr_train.run.settings import GROUPS, Settings
from apr_train.training.gathering import Gathering
from apr_train.training.processes import Processes, ToldElsewhereError, Unheard, Whole
from apr_train.training.signals import StopRequest
from apr_train.training.words import LostProcessError, Words
from apr_train.training.writing import Writing, bytes_to_copy, copied_pieces, has_room, pieces

T = TypeVar("T")

_GRACE = 3.0
"""Seconds in which processes that lost another one find out who has what to say; longer than a beat."""
_HURRY = 10.0
"""Seconds without a sign of life that are enough once a launcher has asked for the end: it kills who stays 30 seconds."""


class Group(Processes):
    """Several processes; this one is number `rank` of `size`."""

    several = True

    def __init__(self, launch: Launch, store: Store) -> None:
        self.rank, self.size, self.launch = launch.rank, launch.size, launch
        self.words = Words(store, launch.rank, launch.size)
        self.hosts: list[str] = self.words.everyone(socket.gethostname())
        self.replicas = 1
        self._offload = False
        self._device = "cpu"
        self._mesh: Any = None
        self._patience = 0.0
        self._pieces_group: Any = None
        self._heard: list[Gathering] = []
        self._gatherings = 0
        self._stop: StopRequest | None = None

    @property
    def told(self) -> str:
        """How many there are, on how many machines, and where the parameters lie."""
        machines = len(set(self.hosts))
        pieces = self.size // self.replicas
        spread = f"parameters in {pieces} pieces" if pieces > 1 else "parameters whole in each"
        groups = f", {self.replicas} times" if 1 < self.replicas < self.size else ""
        return f"{self.size} on {machines} machine{'s' * (machines != 1)}; {spread}{groups}"

    def name(self, rank: int) -> str:
        """`rank 1 on HOST`."""
        return f"rank {rank} on {self.hosts[rank]}"

    # Together, before anything is trained

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """See `Processes.in_turn`."""
        order = [self.rank != 0, self.rank != 0 and self.launch.local_rank != 0]
        for late in order:
            if late and self._faults(None):
                raise ToldElsewhereError
        fault = None
        try:
            yield
        except AprTrainError as error:
            fault = error
        left = len(order) - sum(order) + 1
        for _ in range(left):
            if faults := self._faults(fault):
                self._raise(faults, fault)
            fault = None

    def _faults(self, own: AprTrainError | None) -> dict[int, list[dict[str, str]]]:
        """The faults of this turn, by rank."""
        said = self.words.everyone([] if own is None else [attrs.asdict(finding) for finding in own.findings])
        return {rank: findings for rank, findings in enumerate(said) if findings}

    def _raise(self, faults: Mapping[int, list[dict[str, str]]], own: AprTrainError | None) -> None:
        """End this process: the first one says what is wrong, its own if it has a fault, else that of the others."""
        if self.rank:
            raise ToldElsewhereError(own.exit_code if own is not None else 1)
        if own is not None:
            raise own
        raise RunError.of(self._of(rank, Finding(**cast(Any, item))) for rank, findings in faults.items() for item in findings)

    def _of(self, rank: int, finding: Finding) -> Finding:
        return attrs.evolve(finding, subject=": ".join(filter(None, (self.name(rank), finding.subject))))

    def begun(self, resume: Path | None, settings: Callable[[], Settings]) -> Path | None:
        """See `Processes.begun`; of a run that was resumed at one checkpoint, a restart takes the latest."""
        if not self.launch.restarts:
            return resume
        if resume is not None:
            return find_checkpoint(resume)[0]
        run = settings().run
        return run_of_launch(Path(run.out), self.launch, run.run)

    def require_same(self, facts: Mapping[str, str]) -> None:
        """See `Processes.require_same`."""
        said: list[dict[str, str]] = self.words.everyone(dict(facts))
        others = [
            (rank, name, found) for rank, own in enumerate(said) for name, found in own.items() if found != said[0].get(name)
        ]
        if not others:
            return
        if self.rank:
            raise ToldElsewhereError
        raise RunError.of(
            Finding(
                problem="the processes of a run have to have the same",
                subject=self.name(rank),
                field=name,
                expected=f"{said[0].get(name, 'nothing')}, as {self.name(0)} has",
                found=found,
                hint="Install the same on all machines, and start all processes with the same command.",
            )
            for rank, name, found in others
        )

    def connect(self, settings: Settings) -> None:
        """Open torch's process group, and lay the processes out.

        Raises:
            ConfigError: for groups that do not come out even.
            RunError: for a backend or a device that is not here, or fewer rows than processes.
        """
        self.require_same(_compared(settings))
        with self.in_turn():
            self.replicas = replicas(settings.processes, self.launch)
            self._device = _device_of(settings, self.launch)
            self._offload = _offload(settings, self._device)
        backend = "cpu:gloo,cuda:nccl" if self._device == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=PrefixStore("tensors", self.words.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=settings.processes.timeout),
        )
        self._mesh = make_mesh(self._device, replicas=self.replicas, processes=self.size)
        self._patience = settings.processes.timeout
        self.words.limit = lambda: min(_HURRY, self._patience) if self._stop else self._patience
        owners = range(self.size // self.replicas)
        self._pieces_group = dist.new_group(owners, timedelta(seconds=self._patience), "gloo")  # while others are in use, too

    def answer(self, function: Callable[[], str]) -> str:
        """See `Processes.answer`."""
        found, fault = "", None
        if self.is_first:
            try:
                found = function()
            except AprTrainError as error:
                fault = error
        answered, failed = self.words.everyone([found, fault is not None])[0]
        if fault is not None:
            raise fault
        if failed:
            raise ToldElsewhereError
        return str(answered)

    def note_launch(self, folder: Path) -> None:
        """See `Processes.note_launch`."""
        note_launch(folder, self.launch)

    def once_a_machine(self, name: str, function: Callable[[], T]) -> T:
        """See `Processes.once_a_machine`."""
        key = f"machine/{self.rank // self.launch.local_size}/{name}"
        if self.launch.local_rank == 0:
            self.words.set(key, function())
        found: T = self.words.take(key, of=self.rank - self.launch.local_rank)
        return found

    def shard(self, model: nn.Module, products: torch.dtype | None) -> None:
        """See `Processes.shard`."""
        shard(model, self._mesh, products, offload=self._offload)

    # Together, step by step

    def total(self, *counts: int) -> tuple[int, ...]:
        """See `Processes.total`."""
        sums = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def sums(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `Processes.sums`."""
        together = torch.stack([value.detach() for value in values])
        dist.all_reduce(together)
        return together.unbind()

    def losses(self) -> Losses:
        """See `Processes.losses`; experts are balanced over the rows of all processes."""
        return Losses(over_all)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """See `Processes.add_up`."""
        if not tensors:
            return
        together = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(together)
        pieces = torch.split(together, [tensor.numel() for tensor in tensors])
        for tensor, sums in zip(tensors, pieces, strict=True):
            tensor.copy_(sums.view_as(tensor))

    def norm(self, pieces: Tensor, whole: Tensor) -> Tensor:
        """See `Processes.norm`; where parameters lie several times, so does each piece."""
        square = pieces.detach().double().square()
        dist.all_reduce(square)
        return (square / self.replicas + whole.detach().double().square()).sqrt().to(whole.dtype)

    def span(self, value: float) -> tuple[float, float]:
        """See `Processes.span`."""
        ends = torch.tensor([-value, value], dtype=torch.float64)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        least, largest = ends.tolist()
        return -least, largest

    def measured(self, spread: float) -> dict[str, Any]:
        """See `Processes.measured`."""
        return {"processes": self.size, "step_time_spread": spread}

    def everyone(self, value: T) -> list[T]:
        """See `Processes.everyone`."""
        return self.words.everyone(value)

    def first_says(self, value: T) -> T:
        """See `Processes.first_says`."""
        return self.words.everyone(value)[0]  # type: ignore[no-any-return]  # JSON gives it back as it was

    def stopped_by(self, stop: StopRequest) -> str | None:
        """See `Processes.stopped_by`; of several signals the one of the largest number."""
        self._stop = stop
        _, largest = self.span(0 if stop.name is None else int(signal.Signals[stop.name]))
        if not largest:
            return None  # even if one has come to this process meanwhile: the others hear of it the next time
        name = signal.Signals(int(largest)).name
        stop.name = stop.name or name
        return name

    def draw_by(self, *place: int) -> None:
        """See `Processes.draw_by`: the same on all, for what is drawn is drawn by row (`apr_train.model.dropout`)."""
        text = " ".join(map(str, place))
        seed = int.from_bytes(blake2b(text.encode(), digest_size=8, person=b"apr-dropout").digest(), "little") >> 1
        torch.manual_seed(seed)

    # Where only one speaks

    def say(self, say: Say) -> Say:
        """See `Processes.say`."""
        return say if self.is_first else Unheard().say

    def metrics(self, path: Path) -> MetricsFile | Unheard:
        """See `Processes.metrics`."""
        return MetricsFile(path) if self.is_first else Unheard()

    def display(self, make: Callable[[], RunEvents]) -> RunEvents:
        """See `Processes.display`."""
        return make() if self.is_first else Unheard()

    def write(self, function: Callable[[], T]) -> T | None:
        """See `Processes.write`."""
        return self.write_tensors(lambda _: function(), ())

    def write_tensors(self, function: Callable[[Whole], T], tensors: Sequence[Tensor]) -> T | None:
        """See `Processes.write_tensors`."""
        gathering = self._gathering(tensors, pieces(tensors))
        if self.is_first:
            return gathering.lead(function)
        gathering.serve()
        return None

    def write_behind(self, function: Callable[[Whole], object], tensors: Sequence[Tensor]) -> Writing:
        """See `Processes.write_behind`: each process copies its pieces, and has a thread that writes, or helps to."""
        gathering = self._gathering(tensors, copied_pieces(tensors))
        own = (lambda: gathering.lead(function)) if self.is_first else gathering.serve
        return Writing(own, gathering.given_up)

    def has_room(self, tensors: Sequence[Tensor]) -> bool:
        """See `Processes.has_room`: on every machine, for all of its processes."""
        return all(self.everyone(has_room(self.launch.local_size * bytes_to_copy(tensors))))

    def is_settled(self, writing: Writing, *, wait: bool) -> bool:
        """See `Processes.is_settled`: one that fails on any process has failed."""
        if wait:
            writing.wait()
        over, failed = self.total(writing.is_over, writing.is_over and writing.error is not None)
        if failed:
            writing.wait()
            raise writing.error or ToldElsewhereError()
        return over == self.size

    def give_up(self, writing: Writing, error: BaseException) -> None:
        """See `Processes.give_up`: when another process is lost, what needs its pieces will not be whole."""
        writing.wait(_GRACE if _is_lost(error) else self._patience)

    def _gathering(self, tensors: Sequence[Tensor], here: Sequence[Tensor]) -> Gathering:
        if self.is_first:
            self._heard = [item for item in self._heard if not item.is_forgotten()]
        self._gatherings += 1
        owners = self.size // self.replicas if self._mesh is not None else 1
        made = Gathering(tensors, here, words=self.words, number=self._gatherings, group=self._pieces_group, owners=owners)
        if self.is_first:
            self._heard.append(made)
        return made

    # The end

    def own_fault(self, error: AprTrainError) -> Exception:
        """What this process ends with after a fault of its own: the first one that has it tells it, with who it is."""
        self.words.set(f"ended/{self.rank}", str(error))
        if self.rank and self._within_grace(lambda: self.words.heard("ended/0") is not None or self._is_told()):
            return ToldElsewhereError(error.exit_code)
        if not self._tell():
            return ToldElsewhereError(error.exit_code)
        return error if self.is_first else error.amend(subject=self._of(self.rank, error.finding).subject)

    def lost(self, error: Exception) -> Exception:
        """What this process ends with when another one has gone, or does not answer: one of those left says which."""
        self.words.set(f"left/{self.rank}", str(error).partition("\n")[0])
        before = [self.words.beats(rank) for rank in range(self.size)]

        def missing() -> list[int]:
            said = ("left", "ended")
            return [rank for rank in range(self.size) if not any(self.words.heard(f"{how}/{rank}") for how in said)]

        self._within_grace(lambda: self._is_told() or not missing())
        if self._is_told() or not self._tell():
            return ToldElsewhereError()
        silent = [rank for rank in missing() if self.words.beats(rank) == before[rank]] or missing()
        who = ", ".join(map(self.name, silent)) or "none of those that still answer"
        return RunError(
            "a process of the run has ended, or does not answer",
            where=who,
            hint="The launcher's report has its exit status or signal. Go on from the last checkpoint with --resume; "
            "torchrun --max-restarts does so by itself.",
        )

    def _is_told(self) -> bool:
        return self.words.heard("told") is not None

    def _tell(self) -> bool:
        """Whether it is this process that tells."""
        if self.words.store.add("telling", 1) > 1:
            return False
        self.words.set("told", self.rank)
        return True

    def _within_grace(self, heard: Callable[[], bool]) -> bool:
        end = time.monotonic() + _GRACE
        while not heard():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


def _compared(settings: Settings) -> dict[str, str]:
    """The settings by name, but for paths, which may be others on another machine: what lies there is compared by its hash."""
    named = {
        f"{group}.{item.name}": (item, getattr(getattr(settings, group), item.name))
        for group, cls in GROUPS.items()
        for item in attrs.fields(cls)
    }
    return {name: repr(_without_paths(item, value)) for name, (item, value) in named.items() if not item.metadata[PATH]}


def _without_paths(item: attrs.Attribute[Any], value: Any) -> Any:
    if TABLES not in item.metadata:
        return value
    return [attrs.asdict(table, filter=lambda key, _: not key.metadata[PATH]) for table in value]


def _device_of(settings: Settings, launch: Launch) -> str:
    """`cpu` or `cuda`, of which each process takes the one of its number on its machine.

    Raises:
        RunError: for one that is not here, or has no backend in this build of torch.
    """
    asked = settings.run.device
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if asked is None else asked.partition(":")[0]
    if kind != "cuda":
        return "cpu"
    if asked not in (None, "cuda"):
        raise RunError("each process has a device of its own", where="--device", expected="cuda or cpu", found=asked)
    if launch.local_rank >= torch.cuda.device_count():
        expected = f"at most {torch.cuda.device_count()} processes on this machine"
        raise RunError(
            "there are more processes than CUDA devices", where="--device", expected=expected, found=launch.local_size
        )
    if not dist.is_nccl_available():
        raise RunError("this build of torch has no nccl", where="--device", found=asked or kind, hint="Take --device cpu.")
    torch.cuda.set_device(launch.local_rank)
    return kind


def _offload(settings: Settings, device: str) -> bool:
    """Whether parameters are kept off the device.

    Raises:
        ConfigError: when the device's memory is the machine's.
    """
    if settings.processes.offload and device == "cpu":
        raise ConfigError(
            "there is nothing to offload: on a CPU parameters lie in the machine's memory already",
            where="--offload",
            expected="--device cuda",
            found=settings.run.device or "no CUDA device here",
            hint="Leave it out.",
        )
    return settings.processes.offload


@contextmanager
def several(launch: Launch) -> Iterator[Processes]:
    """The processes of a launch. However one ends, the others end, and one of them says why.

    Raises:
        RunError: when they do not come together, differ in what is installed, or one is gone.
        ToldElsewhereError: on all but one, when there is something to tell.
    """
    group = _meet(launch)
    group.words.beat()
    try:
        installed = {"apr-train": version("apr-train"), "torch": str(torch.__version__), "Python": platform.python_version()}
        group.require_same(installed)
        yield group
    except AprTrainError as error:
        _ignore_the_end()
        raise group.own_fault(error) from error
    except (RuntimeError, dist.DistError) as error:
        if not _is_lost(error):
            raise
        _ignore_the_end()
        raise group.lost(error) from error
    finally:
        group.words.end()
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(launch: Launch) -> Group:
    """Find the other processes.

    Raises:
        RunError: when that takes more than five minutes, or the port is taken.
    """
    where = f"{launch.address}:{launch.port}"
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(minutes=5))))
        started = f"apr_train/{launch.restarts}"
        number = store.add(f"{started}/runs/{launch.rank}", 1)  # a program may have one run after another
        return Group(launch, PrefixStore(f"{started}/{number}", store))
    except (dist.DistError, RuntimeError, ValueError) as error:
        hint = "Is the port free, and can every machine reach it? torchrun --master-port takes another one."
        found = str(error).partition("\n")[0]
        raise RunError("the processes do not come together", where=where, found=found, hint=hint) from error


def _is_lost(error: BaseException) -> bool:
    """Whether another process's end is what an exchange fails with; gloo's errors are known by their text alone."""
    return isinstance(error, dist.DistError | LostProcessError) or "gloo" in str(error)


def _ignore_the_end() -> None:
    """A launcher that sees one process end asks the others to: what is left to say is said first; it kills them later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

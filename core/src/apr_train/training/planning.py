"""What a run will hold and send on so many GPUs, from its own step taken in fake tensors; and which settings fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import attrs
import torch
import torch.distributed as dist
from attrs import frozen
from torch import Tensor, nn

from apr_train.data.batch import Batch
from apr_train.data.decided import decided_data
from apr_train.data.objectives import Objective
from apr_train.data.packing import implies_document_mask
from apr_train.errors import ConfigError, RunError
from apr_train.model.footprint import (
    MEASURED,
    Footprint,
    Held,
    Ledger,
    at_the_head,
    equal_blocks,
    extrapolated,
    largest,
    watch_blocks,
    without_values,
)
from apr_train.model.protocol import LanguageModel
from apr_train.model.sharding import local, make_mesh, shard
from apr_train.preflight.report import Cleared
from apr_train.preflight.step_memory import empty_batch, label_model
from apr_train.run.launch import Launch, replicas
from apr_train.run.settings import LoraSettings, Settings
from apr_train.training.averaging import AveragedWeights
from apr_train.training.build import choose_attention, model_without_memory
from apr_train.training.defaults import Decided, decide
from apr_train.training.optimizer.bfloat16 import PIECE, Float32Updates
from apr_train.training.optimizer.make import Optimizers, kind_of, make_optimizer
from apr_train.training.step import train_step

KEPT_FREE = 0.1
"""Share of a GPU's memory that a plan leaves: CUDA's context and libraries, and what the allocator cannot use."""
MOST_TOKENS = 2**17
"""Of a GPU, a pass, beyond which no plan looks: the head's loss goes through them in small chunks."""
_LATER = 2
"""A step that has been taken before: its gradients are not looked for anew."""


@frozen(kw_only=True)
class Way:
    """One way to spread a run, and what a GPU holds then."""

    shard: str
    replicate: int
    """Groups of GPUs that each have all parameters between them."""
    recompute: bool
    one_row: Footprint
    """With one row a GPU, a pass."""
    rows: int
    """The most rows a GPU, a pass, that fit, of `MOST_TOKENS` tokens at most; 0: not even one."""


@frozen(kw_only=True)
class Plan:
    """What was asked, the ways that were looked at, and the one that is suggested."""

    gpus: int
    memory: int | None
    """Bytes of a GPU; None: nothing is judged."""
    decided: Decided
    """The settings of the way that `footprint` is of."""
    cleared: Cleared
    parameters: int
    ways: tuple[Way, ...]
    way: Way
    """The suggested one: it fits, computes nothing twice if it can be, and sends least."""
    footprint: Footprint
    """Of that way, of the whole model, with the rows that it is told for."""

    @property
    def room(self) -> int | None:
        """What a step may hold."""
        return None if self.memory is None else int(self.memory * (1 - KEPT_FREE))

    @property
    def fits(self) -> bool | None:
        """Whether it is so."""
        return None if self.room is None else self.footprint.total <= self.room


def make_plan(asked: Settings, cleared: Cleared, *, gpus: int, per_node: int, memory: int | None) -> Plan:
    """Find out what a step holds on a GPU, for every way to spread the run that the settings leave open.

    Args:
        asked: what they say of batch, `--shard` and `--recompute` is kept; the rest is looked for.
        cleared: the model.
        gpus: all of them.
        per_node: those of a machine.
        memory: bytes of one.

    Raises:
        ConfigError: for GPUs that cannot be divided as the settings say, or a batch of fewer rows than GPUs.
        RunError: in a program that is one of several processes.
        AttentionError: for a backend that cannot run.
    """
    launch = _launch(gpus, per_node)
    room = None if memory is None else int(memory * (1 - KEPT_FREE))
    if asked.data.batch_size is not None and asked.data.batch_size < gpus:
        expected = f"at least {gpus}, one for each GPU"
        raise ConfigError("fewer rows than GPUs", where="--batch-size", expected=expected, found=asked.data.batch_size)
    rows = None if asked.data.batch_size is None else -(-asked.data.batch_size // gpus)
    ways = [_look_at(settings, cleared, launch, room) for settings in _open_ways(asked, launch)]
    way = min(ways, key=lambda way: (max(1, rows or 1) > way.rows, way.recompute, way.one_row.sent, way.one_row.total))
    if room is not None and max(1, rows or 1) > way.rows:
        way = min(ways, key=lambda way: way.one_row.total)
    own = rows or max(1, way.rows if room is not None else 1)
    decided = _decided(_with_way(asked, way), cleared, own * gpus if rows is None else cast(int, asked.data.batch_size))
    step = take_step(cleared, decided, way.replicate, gpus, own)
    return Plan(
        gpus=gpus,
        memory=memory,
        decided=decided,
        cleared=cleared,
        parameters=step.parameters,
        ways=tuple(ways),
        way=way,
        footprint=step.largest,
    )


def _launch(gpus: int, per_node: int) -> Launch:
    if gpus < 1 or per_node < 1:
        where, found = ("--gpus", gpus) if gpus < 1 else ("--gpus-per-node", per_node)
        raise ConfigError("no GPUs", where=where, expected="at least 1", found=found)
    if gpus > per_node and gpus % per_node:
        expected = f"a multiple of {per_node}, the GPUs of a machine (--gpus-per-node)"
        raise ConfigError("machines that have not equally many GPUs", where="--gpus", expected=expected, found=gpus)
    return Launch(rank=0, size=gpus, local_rank=0, local_size=min(gpus, per_node), address="", port=0, id="")


def _open_ways(asked: Settings, launch: Launch) -> Iterator[Settings]:
    """The settings with every `--shard` and `--recompute` that they leave open."""
    shards = [asked.processes.shard]
    if asked.processes.shard == "auto" and asked.processes.replicate is None and launch.size > 1:
        shards = ["full", *(["hybrid"] if launch.nodes > 1 else []), "none"]
    for way in shards:
        for recompute in [True] if asked.run.recompute else [False, True]:
            processes, run = attrs.evolve(asked.processes, shard=way), attrs.evolve(asked.run, recompute=recompute)
            yield attrs.evolve(asked, processes=processes, run=run)


def _with_way(asked: Settings, way: Way) -> Settings:
    processes = attrs.evolve(asked.processes, shard=way.shard)
    return attrs.evolve(asked, processes=processes, run=attrs.evolve(asked.run, recompute=way.recompute))


def _look_at(settings: Settings, cleared: Cleared, launch: Launch, room: int | None) -> Way:
    """What one way holds with one row, and how many rows fit."""
    groups = replicas(settings.processes, launch)

    def footprint(rows: int) -> Footprint:
        return estimate(cleared, _decided(settings, cleared, rows * launch.size), groups, launch.size, rows)

    one_row = _decided(settings, cleared, launch.size).sequence_length
    one = footprint(1)
    fitting = (
        0
        if room is None or one.total > room
        else _most_rows(lambda rows: footprint(rows).total, one.total, room, max(1, MOST_TOKENS // one_row))
    )
    return Way(shard=settings.processes.shard, replicate=groups, recompute=settings.run.recompute, one_row=one, rows=fitting)


def _most_rows(held: Callable[[int], int], one: int, room: int, limit: int) -> int:
    """The most rows, up to a limit, whose step holds no more than there is room; one row does, which holds `one`.

    What is held grows with the rows, in the end in proportion: the next guess lies on the line through the last two, but at
    most four times as far as what is known to fit.
    """
    fits, least, known = 1, limit + 1, [(1, one)]
    while least - fits > 1:
        (first, low), (second, high) = ([(0, 0), *known])[-2:]
        slope = max(1.0, (high - low) / (second - first))
        rows = min(max(int(second + (room - high) / slope), fits + 1), 4 * fits, least - 1)
        now = held(rows)
        known = sorted([*known, (rows, now)])[-2:] if now <= room else sorted([known[-1], (rows, now)])
        fits, least = (rows, least) if now <= room else (fits, rows)
    return fits


def _decided(settings: Settings, cleared: Cleared, batch: int) -> Decided:
    """The settings as a run on CUDA would have them, decided for the CPU, whose operators take the step."""
    positions = cleared.config.usable_positions
    data = decided_data(settings.data, cleared.objective, device="cuda", positions=positions)
    run = attrs.evolve(settings.run, precision=settings.run.precision or "bf16", device="cpu", compile=False)
    filled = attrs.evolve(settings, data=attrs.evolve(data, batch_size=batch), run=run)
    return decide(
        filled, family=cleared.family.info, config=cleared.config, objective=cleared.objective, device=torch.device("cpu")
    )


def estimate(cleared: Cleared, decided: Decided, groups: int, gpus: int, rows: int) -> Footprint:
    """What a step of `rows` rows a GPU holds, from steps of a few blocks where all are alike."""
    blocks = _equal_blocks(cleared, decided)
    if blocks <= MEASURED[1]:
        return take_step(cleared, decided, groups, gpus, rows).largest
    few, more = (take_step(cleared, decided, groups, gpus, rows, blocks=count) for count in MEASURED)
    sent = more.sent + (blocks - MEASURED[1]) * (more.sent - few.sent)
    return largest(extrapolated(few.phases, more.phases, blocks), sent)


def _equal_blocks(cleared: Cleared, decided: Decided) -> int:
    """How many blocks there are, if all are alike; else 0."""
    plain = attrs.evolve(decided.settings, lora=LoraSettings())  # adapters are on all of them, or hardly worth a difference
    model = model_without_memory(cleared, choose_attention(cleared, decided), attrs.evolve(decided, settings=plain))
    return len(cast(LanguageModel, model).blocks) if equal_blocks(model) else 0


@frozen(kw_only=True)
class Step:
    """A step that was taken in fake tensors."""

    phases: Mapping[str, Held]
    sent: float
    """Bytes that a GPU sends."""
    parameters: int

    @property
    def largest(self) -> Footprint:
        """The phase that holds most."""
        return largest(self.phases, self.sent)


def take_step(cleared: Cleared, decided: Decided, groups: int, gpus: int, rows: int, *, blocks: int | None = None) -> Step:
    """Take a step as `training.loop` does, on the first of so many GPUs, in fake tensors.

    Args:
        groups: of GPUs that each have all parameters between them.
        rows: of this GPU, a pass.
        blocks: only so many, the first ones; None: all.

    Raises:
        RunError: in a program that is one of several processes already, or for a model whose step depends on values.
    """
    model = model_without_memory(cleared, choose_attention(cleared, decided), decided)
    if blocks is not None:
        del cast(LanguageModel, model).blocks[blocks:]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    whole = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    ledger = Ledger(chosen=decided.settings.data.mask_probability)
    with _fake_processes(gpus, groups) as mesh:
        if mesh is not None:
            shard(model, mesh, decided.precision.autocast)
        watch_blocks(model, ledger)
        with _foreseeable(), without_values(model, ledger):
            state = _train(model, cleared.objective, decided, ledger, rows)
    phases, sent = _steady(ledger.peaks(), state), _sent(ledger, decided.settings.data.accumulate)
    if mesh is not None and decided.settings.lora.lora_rank is not None:
        phases["making the model"] = {"weights": whole}  # as `make_model` does it: whole, and cut then
    return Step(phases=phases, sent=sent, parameters=parameters)


@contextmanager
def _fake_processes(size: int, groups: int) -> Iterator[Any]:
    """A mesh of processes that are not there, of which this one is the first; None for one process.

    Torch's own backend for that: whoever waits for another one gets at once what was there before.
    """
    if size == 1:
        yield None
        return
    if dist.is_initialized():
        problem = "several processes are planned in a program that is not one of several itself"
        raise RunError(problem, where="plan", hint="Ask apr-train plan beside the run.")
    from torch.testing._internal.distributed import fake_pg  # registers the backend

    dist.init_process_group(dist.Backend.FAKE, rank=0, world_size=size, store=fake_pg.FakeStore())
    try:
        yield make_mesh("cpu", replicas=groups, processes=size)
    finally:
        dist.destroy_process_group()


@contextmanager
def _foreseeable() -> Iterator[None]:
    """Refuse a model whose step depends on values.

    Raises:
        RunError: instead of torch's refusal.
    """
    try:
        yield
    except RuntimeError as error:
        found, hint = str(error).partition("\n")[0].rstrip("."), "apr-train plan --debug has the place."
        raise RunError("no step without values can be taken of this model", where="plan", found=found, hint=hint) from error


def _train(model: nn.Module, objective: Objective, decided: Decided, ledger: Ledger, rows: int) -> int:
    """Take the step; returns the bytes of the optimizer's state afterwards."""
    settings = decided.settings
    averages = None
    if settings.run.ema is not None:
        ledger.enter("model", "averages")
        averages = AveragedWeights(model, settings.run.ema)
    optimizer = _Updates(make_optimizer(model, settings.optimizer, lr=decided.schedule.lr), model, ledger)
    watched = _Watched(objective, ledger)
    masked = settings.data.document_mask or implies_document_mask(settings.data.packing or objective.packing)
    mask = objective.mask_kind(document_mask=masked)
    ledger.enter("batch", "activations")
    batches = [empty_batch(rows, decided.sequence_length, mask) for _ in range(min(settings.data.accumulate, 2))]
    train_step(
        model,
        cast(Optimizers, optimizer),
        batches,
        objective=cast(Objective, watched),
        precision=decided.precision,
        clip_norm=settings.optimizer.clip_norm,
        step=_LATER,
    )
    if averages is not None:
        ledger.enter("averages", "averages")
        averages.update(model)
    optimizer.label()
    return ledger.held().get("optimizer", 0)


class _Watched:
    """An objective that lets the ledger know when a pass begins and when it comes to the head."""

    def __init__(self, objective: Objective, ledger: Ledger) -> None:
        self._objective, self._ledger, self._passes = objective, ledger, 0

    def predicted(self, model: LanguageModel, batch: Batch, losses: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """As the objective's own."""
        if self._passes:
            self._ledger.keep("backward", "gradients")  # of the pass before: not exchanged yet, and so whole
        self._passes += 1
        self._ledger.passes = self._passes
        self._ledger.enter("forward", "activations")
        hidden, wanted = self._objective.predicted(model, batch, losses)
        at_the_head(hidden, self._ledger)
        return hidden, wanted


class _Updates:
    """The run's optimizer, whose state is told from what an update takes for itself."""

    def __init__(self, optimizer: Optimizers, model: nn.Module, ledger: Ledger) -> None:
        self._optimizer, self._model, self._ledger = optimizer, model, ledger

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the optimizer's own."""
        self._optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Update; where each parameter is updated by itself and in small pieces, one of them: the others take no more."""
        self.label()
        self._ledger.enter("optimizer", "optimizer")
        for part in self._optimizer.parts:
            if isinstance(part, Float32Updates) and kind_of(part) == "AdamW":
                _update_one(part)
            else:
                part.step()

    def label(self) -> None:
        """Say which tensors are weights, gradients and state."""
        label_model(self._model, self._ledger)
        states = (state for part in self._optimizer.parts for state in part.state.values())
        self._ledger.label((value for state in states for value in state.values() if isinstance(value, Tensor)), "optimizer")


def _update_one(part: Float32Updates) -> None:
    """Make all the state; update one parameter, the smallest that has the most that is updated at a time."""
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    gradients = {parameter: parameter.grad for parameter in parameters}
    for parameter in parameters:
        part.state[parameter].update(part.blank(parameter))
    sizes = {parameter: local(parameter.detach()).numel() for parameter in parameters}
    most = min(PIECE, max(sizes.values()))
    chosen = min((parameter for parameter in parameters if sizes[parameter] >= most), key=sizes.__getitem__)
    for parameter in parameters:
        parameter.grad = gradients[parameter] if parameter is chosen else None
    part.step()
    for parameter, gradient in gradients.items():
        parameter.grad = gradient


def _steady(phases: Mapping[str, Held], state: int) -> dict[str, Held]:
    """The phases of a step that is not the first one: the optimizer's state is there from the beginning."""
    return {
        name: held if name in ("optimizer", "averages") else {**held, "optimizer": held.get("optimizer", 0) + state}
        for name, held in phases.items()
    }


def _sent(ledger: Ledger, passes: int) -> float:
    """Bytes that a step of so many passes sends, of which the first two at most were taken."""
    last = max(ledger.sent, default=1)
    return ledger.sent.get(last, 0.0) + (passes - 1) * (ledger.sent.get(1, 0.0) if last > 1 else 0.0)

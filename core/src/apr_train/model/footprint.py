"""What a step holds in memory: a ledger of every tensor's bytes, kept while the step runs in fake tensors, which have none.

A fake tensor (torch's FakeTensorMode) has a shape, a type and a lifetime, but no values. The step is the trainer's own; it is
computed as on a CPU, whose attention kernel keeps what the fused ones of CUDA keep. What a kernel takes for itself, but for
one of the loss, and what an allocator loses between tensors, is not seen.
"""

from __future__ import annotations

import logging
import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from attrs import define, field, frozen
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apr_train.model.protocol import LanguageModel
from apr_train.model.sharding import is_sharded, local

Kind = Literal["weights", "gradients", "optimizer", "averages", "activations", "logits", "communication"]
KINDS: tuple[Kind, ...] = ("weights", "gradients", "optimizer", "averages", "activations", "logits", "communication")
"""What a tensor is there for. Logits: all that the head's loss computes. Communication: gathered parameters, and buffers."""

_KEPT: frozenset[Kind] = frozenset({"weights", "gradients", "optimizer", "averages"})
_EXCHANGES = ("c10d", "_c10d_functional", "fsdp")
"""Namespaces of the operators that exchange tensors."""
_GATHERED = "split_with_sizes_copy"
"""The operator that FSDP2 copies gathered parameters out of a buffer with."""
_BYTES_SENT: Mapping[str, Callable[[int], float]] = {
    "_allgather_base_": lambda of: (of - 1) / of,
    "all_gather_into_tensor": lambda of: (of - 1) / of,
    "_reduce_scatter_base_": lambda of: (of - 1) / of,
    "reduce_scatter_tensor": lambda of: (of - 1) / of,
    "allreduce_": lambda of: 2 * (of - 1) / of,
    "all_reduce": lambda of: 2 * (of - 1) / of,
}
"""Collective → what each of `of` processes sends in a ring, by the bytes of the whole (Patarasu and Yuan 2009)."""

Held = dict[Kind, int]
"""Bytes by kind."""


@define(eq=False)
class _Storage:
    """The memory of a tensor and its views, and when there is how much of it."""

    kind: Kind
    size: int
    begin: int
    reference: Any = field(default=None, repr=False)
    past: list[tuple[int, int, int]] = field(factory=list)
    """Bytes, first and last operation, of the sizes that it had."""

    def end(self, now: int) -> None:
        self.past.append((self.size, self.begin, now))


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
    """Who holds how many bytes at every operation that runs under it, and what is sent to other processes.

    Torch's own `MemTracker` and `FSDPMemTracker` (`torch.distributed._tools`) were weighed: they know neither logits nor
    averages, refuse accumulated passes, and copy their figures at every module. Tests compare the peaks with the allocator's.

    Args:
        chosen: the share of positions that a boolean index chooses, whose number would be known from values alone.
    """

    def __init__(self, *, chosen: float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.phases: list[tuple[int, str]] = [(0, "")]
        self.sent: dict[int, float] = {}
        """Number of the pass → bytes that this process sends in it."""
        self.passes = 1
        """The present one."""
        self.mode = FakeTensorMode()
        self._chosen = chosen
        self._kind: Kind = "activations"
        self._now = 0
        self._living: dict[int, _Storage] = {}
        self._all: list[_Storage] = []
        self._resized: list[_Storage] = []
        self._counts: dict[int, int] = {}

    def enter(self, phase: str, kind: Kind) -> None:
        """What begins now, and what is held for it."""
        self.phases.append((self._now + 1, phase))
        self._kind = kind

    def label(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """What tensors are held for, from their beginning on."""
        for tensor in tensors:
            storage = self._living.get(_key(local(tensor)))
            if storage is not None:
                storage.kind = kind

    def keep(self, phase: str, kind: Kind) -> None:
        """What is still there of what began in or after the last phase of that name."""
        begin = next((begin for begin, name in reversed(self.phases) if name == phase), 0)
        for storage in self._living.values():
            if storage.begin >= begin and storage.kind not in _KEPT and storage not in self._resized:
                storage.kind = kind

    def peaks(self) -> dict[str, Held]:
        """Phase → what is held when that is most."""
        changes = [change for storage in self._all for change in self._changes(storage)]
        changes.sort(key=lambda change: change[0])
        return _most(changes, self.phases)

    def held(self) -> Held:
        """What is held now."""
        now: Held = {}
        for storage in self._living.values():
            now[storage.kind] = now.get(storage.kind, 0) + storage.size
        return now

    def _changes(self, storage: _Storage) -> Iterator[tuple[int, int, Kind]]:
        for size, begin, last in storage.past:
            yield begin, size, storage.kind
            yield last + 1, -size, storage.kind
        if storage.reference() is not None:
            yield storage.begin, storage.size, storage.kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args)
        distributed: Any = sys.modules.get("torch.distributed.tensor")
        if distributed is not None and any(issubclass(cls, distributed.DTensor) for cls in types):
            return NotImplemented  # it computes on its pieces, which come here again
        if len(self.mode.enter_stack) > 1:
            return func(*args, **(kwargs or {}))  # DTensor looks what shape a result would have
        self._now += 1
        known, out = self._without_values(func, args)
        out = out if known else func(*args, **(kwargs or {}))
        self._see(out)
        if func is torch.ops.aten.logsumexp.default:
            self._within(args[0])
        if func.namespace in _EXCHANGES:
            self._exchange(func, args, kwargs or {}, out)
        elif func is torch.ops.aten.sum.default and args[0].dtype == torch.bool:
            self._counts[_key(out)] = args[0].numel()
        return out

    def _without_values(self, func: Any, args: Any) -> tuple[bool, Any]:
        """Whether an operator's result would depend on values, and then the usual one: all count, and every number is 1."""
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            number = self._counts.get(_key(args[0]), 1)
            return True, float(number) if args[0].is_floating_point() else number
        if func in (aten.index.Tensor, aten._index_put_impl_.default, aten.index_put_.default) and _by_bool(args[1]):
            if func is not aten.index.Tensor:
                return True, args[0]
            (mask,) = args[1]
            count = math.ceil(self._chosen * mask.numel())
            return True, args[0].new_empty((count, *args[0].shape[mask.ndim :]))
        return False, None

    def _see(self, out: Any) -> None:
        """Note new memory, and what of the gathered is let go meanwhile: torch resizes it past every mode."""
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, FakeTensor):
                self._note(tensor)

    def _within(self, tensor: Tensor) -> None:
        """Note memory of a tensor's size that an operator takes and gives back: logsumexp that of its exponentials."""
        storage = _Storage(self._kind, 0, self._now, reference=lambda: None)
        storage.past.append((tensor.numel() * tensor.element_size(), self._now, self._now))
        self._all.append(storage)

    def _note(self, tensor: Tensor) -> None:
        memory = tensor.untyped_storage()
        key = memory._cdata
        if key in self._living:
            return
        for gathered in self._resized:
            self._measure(gathered)
        storage = _Storage(self._kind, memory.nbytes(), self._now)
        self._living[key] = storage
        self._all.append(storage)

        def forget(_: Any) -> None:
            storage.end(self._now)
            self._living.pop(key, None)

        storage.reference = weakref.ref(memory, forget)

    def _measure(self, storage: _Storage) -> None:
        """Note another size of memory that is there, since before the present operation."""
        memory = storage.reference()
        if memory is not None and (size := memory.nbytes()) != storage.size:
            storage.end(self._now - 1)
            storage.size, storage.begin = size, self._now

    def _exchange(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note what an exchange is made through, and what it sends."""
        name = func.overloadpacket.__name__
        own = [tensor for tensor in tree_leaves((args, kwargs, out)) if isinstance(tensor, FakeTensor)]
        for tensor in own:
            storage = self._living.get(_key(tensor))
            if storage is not None and storage.kind not in _KEPT and storage.kind != "communication":
                storage.kind = "communication"
                if name == _GATHERED:
                    self._resized.append(storage)
        if name in _BYTES_SENT:
            whole = max(tensor.numel() * tensor.element_size() for tensor in own)
            self.sent[self.passes] = self.sent.get(self.passes, 0.0) + whole * _BYTES_SENT[name](_group_size(name, args))


def _group_size(name: str, args: Any) -> int:
    """How many processes a collective is of."""
    if name.endswith("_"):
        group = next(arg for arg in args if isinstance(arg, torch.ScriptObject))
        return int(dist.ProcessGroup.unbox(group).size())
    return int(args[1] if name == "all_gather_into_tensor" else args[2])


def _most(changes: Sequence[tuple[int, int, Kind]], phases: Sequence[tuple[int, str]]) -> dict[str, Held]:
    """Phase → bytes by kind at the moment when they are most; `changes` in order of their operation."""
    now, most = dict.fromkeys(KINDS, 0), dict[str, tuple[int, Held]]()
    total, place, ends = 0, 0, [begin for begin, _ in phases[1:]] + [sys.maxsize]
    for (_, name), end in zip(phases, ends, strict=True):
        best, held = most.get(name, (0, {}))
        if total > best:
            best, held = total, dict(now)
        while place < len(changes) and changes[place][0] < end:
            moment = changes[place][0]
            while place < len(changes) and changes[place][0] == moment:
                _, size, kind = changes[place]
                now[kind], total, place = now[kind] + size, total + size, place + 1
            if total > best:
                best, held = total, dict(now)
        most[name] = best, held
    return {name: held for name, (_, held) in most.items()}


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@frozen(kw_only=True)
class Footprint:
    """What a process holds in a step when that is most."""

    held: Held
    """Bytes by kind."""
    phase: str
    """What the process is at then."""
    sent: float = 0.0
    """Bytes that it sends to others in a pass, all its exchanges taken as rings."""

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.held.values())


Phases = Mapping[str, Held]


def largest(phases: Phases, sent: float = 0.0) -> Footprint:
    """The phase that holds most."""
    name = max(phases, key=lambda phase: sum(phases[phase].values()))
    return Footprint(held={kind: phases[name].get(kind, 0) for kind in KINDS}, phase=name, sent=sent)


MEASURED = 3, 4
"""Of how many blocks a step is taken to tell of a model with more, all alike: one at each end, and one or two between."""


def extrapolated(few: Phases, more: Phases, blocks: int) -> dict[str, Held]:
    """The phases of a model of many equal blocks from those of `MEASURED` numbers of them.

    From block to block the same is added, whatever the phase: what is held in the first and the last two blocks' phases
    grows by one block's part, and in the blocks between it lies between these.
    """
    left = blocks - MEASURED[1]
    ends = [_by_end(phases, count) for phases, count in zip((few, more), MEASURED, strict=True)]
    return {
        name: {kind: held.get(kind, 0) + left * (held.get(kind, 0) - ends[0][name].get(kind, 0)) for kind in KINDS}
        for name, held in ends[1].items()
    }


def _by_end(phases: Phases, blocks: int) -> dict[str, Held]:
    """Phases with their block counted from the nearer end, the last one as -1; what lies in the middle counts from both."""
    named = {}
    for name, held in phases.items():
        head, _, number = name.rpartition(BLOCK)
        if not head:
            named[name] = held
            continue
        place = int(number) - 1
        for end in {place, place - blocks} & _ENDS.keys():
            named[f"{head} of the {_ENDS[end]} block"] = held
    return named


_ENDS = {0: "first", 1: "second", -2: "last but one", -1: "last"}
BLOCK = " of block "
"""Stands between what is done and the number of the block, from 1 on, in the name of a phase."""


def watch_blocks(model: nn.Module, ledger: Ledger) -> None:
    """Let the ledger know when a pass goes from block to block, forward and back."""

    def forwards(name: str) -> Callable[..., None]:
        return lambda *_: ledger.enter(f"forward{name}", "activations")

    def backwards(name: str) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, out: Any) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            hidden.register_hook(lambda _: ledger.enter(f"backward{name}", "activations"))

        return after

    for number, block in enumerate(cast(LanguageModel, model).blocks, 1):
        block.register_forward_pre_hook(forwards(f"{BLOCK}{number}"))
        block.register_forward_hook(backwards(f"{BLOCK}{number}"))


def at_the_head(hidden: Tensor, ledger: Ledger) -> None:
    """Let the ledger know that the head's loss comes next; behind it, the way back begins."""
    ledger.enter("head", "logits")

    def turn(_: Tensor) -> None:
        ledger.enter("backward", "activations")

    hidden.register_hook(turn)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def equal_blocks(model: nn.Module) -> bool:
    """Whether all blocks have the same parameters, so that a few tell of all."""
    told = {
        tuple((name, value.shape, value.requires_grad) for name, value in block.named_parameters())
        for block in cast(LanguageModel, model).blocks
    }
    config = cast(LanguageModel, model).config
    window = getattr(config, "window", None)
    windows = {window(layer) for layer in range(len(cast(LanguageModel, model).blocks))} if window is not None else {None}
    return len(told) == 1 and len(windows) == 1


def _by_bool(indices: Any) -> bool:
    return len(indices) == 1 and isinstance(indices[0], Tensor) and indices[0].dtype == torch.bool


@contextmanager
def without_values(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Inside, a model of the meta device, sharded or not, has fake tensors on the CPU, and the ledger sees what is done.

    A parameter that stands in two places is one there, too. What torch logs of an operator that it has no shapes for is left
    out: the error says it.
    """
    with torch.no_grad():
        pieces = {parameter: local(parameter) for parameter in model.parameters()}
    with ledger.mode, ledger, _quiet(logging.getLogger(FakeTensorMode.__module__)):
        ledger.enter("model", "weights")
        fakes = {parameter: _faked(parameter, piece) for parameter, piece in pieces.items()}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                module._parameters[name] = parameter if parameter is None else fakes[parameter]
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
        yield


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _faked(parameter: nn.Parameter, piece: Tensor) -> nn.Parameter:
    value = torch.empty(piece.shape, dtype=piece.dtype)
    if is_sharded(parameter):
        from torch.distributed.tensor import DTensor

        known = cast(Any, parameter)
        where: dict[str, Any] = {"shape": parameter.shape, "stride": parameter.stride()}
        value = DTensor.from_local(value, known.device_mesh, known.placements, run_check=False, **where)
    return nn.Parameter(value, requires_grad=parameter.requires_grad)

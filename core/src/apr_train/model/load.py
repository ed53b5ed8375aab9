"""Fill a model from a checkpoint: every tensor used, compared, or named in the report, and the checksum over the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import chain

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn

from apr_train import rules
from apr_train.checkpoint.checkpoint import Checkpoint, Progress, Stream, Streaming
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.parallel import results
from apr_train.errors import Finding, PreflightError, RunError
from apr_train.family.load_plan import LoadPlan
from apr_train.family.name_map import Fill
from apr_train.family.operations import Identity, joined, part_of
from apr_train.model.sharding import local, piece_of
from apr_train.model.tensors import TORCH_DTYPES, to_torch

_COMPARE = 1 << 20


@frozen(kw_only=True)
class LoadReport:
    """What a load did with every tensor of the file and every parameter of the model."""

    loaded: tuple[str, ...]
    """Tensors of the file that filled a parameter."""
    duplicates: tuple[str, ...]
    """Tied tensors stored a second time: compared, equal, not loaded again."""
    ignored: tuple[tuple[str, str], ...]
    """Tensors of the file that the model does not use, with the reason."""
    fresh: tuple[str, ...]
    """Parameters that the file does not have and that were initialised."""
    bytes_read: int
    verified: bool
    """Whether a checksum over the data was compared; a container without one cannot."""

    def __str__(self) -> str:
        used = len(self.loaded) + len(self.duplicates) + len(self.ignored)
        parts = [f"{len(self.loaded)} loaded"]
        parts += [f"{len(self.duplicates)} equal to the tensor they are tied to"] if self.duplicates else []
        parts += [f"{name} ignored ({reason})" for name, reason in self.ignored]
        fresh = f"; freshly initialised: {', '.join(self.fresh)}" if self.fresh else ""
        checked = "" if self.verified else "; checksum not verified"
        return f"{used} of {used} tensors accounted for: {', '.join(parts)}{fresh}{checked}"


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    plan: LoadPlan,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    verify: bool | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Give every parameter of a (meta-device) model its memory and its values, streaming one tensor at a time.

    A tensor that fills a parameter, or a part of one that lies in one piece (an expert of a stack), is read straight into
    its place, by as many threads as torch has; one that is cut or changed goes through memory of its own. Peak memory is the
    model and one such tensor.
    Values are rounded to `dtype` (default: each parameter's own). `verify` None does as the checkpoint was opened. On any
    error the model is left as it was. Parameters are replaced by new ones: make the optimizer afterwards. `generator`
    (default: seed 0) draws what the file does not have.

    Raises:
        PreflightError: with the plan's findings if it has any, or FALSIFY-APR-PRETRAIN-INIT-007 when parameters and plan
            do not match, or when a tied tensor stored twice differs from the first.
        FormatError: when the file turns out to be damaged.
        RunError: when something of the model would stay without memory.
    """
    if plan.findings:
        raise PreflightError(plan.findings)
    parameters = dict(model.named_parameters())
    _check_coverage(parameters, plan, checkpoint.header.path)
    _check_buffers(model)
    values = {name: _empty_like(item, dtype, device) for name, item in parameters.items()}
    stream = checkpoint.stream(verify=verify) if isinstance(checkpoint, Streaming) else None
    source = _Source(checkpoint, stream, progress or _silent)
    with stream if stream is not None else nullcontext():
        for name, edges in plan.loaded.items():
            source.fill(name, edges, values)
        source.read_straight(torch.get_num_threads())
        source.compare(plan)
    _adopt(model, parameters, values)
    if plan.fresh:
        names = plan.fresh_parameters
        model.initialize(generator or torch.Generator().manual_seed(0), names)  # type: ignore[operator] # LanguageModel's
    checked = isinstance(checkpoint, Streaming) and (checkpoint.verify_data if verify is None else verify)
    return _report(plan, source.bytes_read, verified=checked)


@torch.no_grad()
def load_pieces(
    model: nn.Module,
    checkpoint: Checkpoint,
    plan: LoadPlan,
    *,
    generator: torch.Generator,
    verified: bool,
) -> LoadReport:
    """Fill a sharded model, which has its memory already: each process reads the rows of its pieces from the memory map.

    A parameter whose values are changed on the way, or come from several tensors, is read whole, one at a time. What the
    file does not have is drawn from `generator`, on each process the whole of it, and a piece is kept.

    Args:
        model: sharded (`model.sharding.shard`), with memory.
        checkpoint: its checksum is not compared here, for nobody reads all of it; `verified` says that it was.
        plan: without findings.
        generator: on the CPU, in the same state on all processes.
        verified: what the report says of the checksum.

    Raises:
        PreflightError: as `load_weights`.
        FormatError: when the file turns out to be damaged.
        RunError: when something of the model would stay without memory.
    """
    if plan.findings:
        raise PreflightError(plan.findings)
    parameters = dict(model.named_parameters())
    _check_coverage(parameters, plan, checkpoint.header.path)
    _check_buffers(model)
    source = _Source(checkpoint, None, _silent)
    for name, edges in plan.filled.items():
        source.fill_piece(edges, parameters[name])
    source.compare(plan)
    if plan.fresh:
        model.initialize(generator, plan.fresh_parameters)  # type: ignore[operator] # LanguageModel's
    return _report(plan, source.bytes_read, verified=verified)


def _empty_like(parameter: Tensor, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    wanted = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
    return torch.empty(parameter.shape, dtype=wanted, device=device)


def _report(plan: LoadPlan, bytes_read: int, *, verified: bool) -> LoadReport:
    return LoadReport(
        loaded=tuple(plan.loaded),
        duplicates=tuple(entry.checkpoint for entry in plan.duplicates),
        ignored=tuple((entry.checkpoint, entry.reason) for entry in plan.ignored),
        fresh=plan.fresh_parameters,
        bytes_read=bytes_read,
        verified=verified,
    )


def _silent(count: int) -> None:
    """No progress is wanted."""


def _check_coverage(parameters: Mapping[str, Tensor], plan: LoadPlan, where: str) -> None:
    """Every parameter is filled exactly once, from the file or freshly."""
    filled = {entry.parameter for entry in (*plan.loads, *plan.fresh)}
    faults = [(name, "a parameter that nothing fills", "no rule") for name in parameters if name not in filled]
    faults += [
        (name, "a rule fills a parameter that the model does not have", name) for name in filled if name not in parameters
    ]
    faults += [
        (edges[0].checkpoint, "the tensor does not have the parameter's shape", str(list(edges[0].parameter_shape)))
        for name, edges in plan.filled.items()
        if name in parameters and edges[0].parameter_shape != tuple(parameters[name].shape)
    ]
    if faults:
        raise PreflightError(
            [
                Finding(rule=rules.INIT_007, subject=where, field=name, problem=problem, found=found)
                for name, problem, found in faults
            ]
        )


def _check_buffers(model: nn.Module) -> None:
    without = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if without:
        raise RunError(
            "buffers on the meta device cannot be loaded",
            where=type(model).__name__,
            expected="parameters only; tables computed when they are needed",
            found=", ".join(without),
        )


def _as_it_lies(edges: tuple[Fill, ...]) -> bool:
    """Whether a tensor goes to one place only, and is there what it is in the file."""
    return len(edges) == 1 and isinstance(edges[0].operation, Identity) and edges[0].checkpoint_part is None


def _same_bytes(info: TensorInfo, target: Tensor) -> bool:
    """Whether a tensor's bytes in the file are what the target holds."""
    return target.device.type == "cpu" and TORCH_DTYPES.get(info.dtype) == target.dtype


class _Source:
    """Where values come from: a stream straight into memory where it can, views of the file where not."""

    def __init__(self, checkpoint: Checkpoint, stream: Stream | None, progress: Progress) -> None:
        self._checkpoint, self._stream, self._progress = checkpoint, stream, progress
        self._tensors = checkpoint.header.tensors
        self._straight: dict[str, Tensor] = {}
        self.bytes_read = 0

    def fill(self, name: str, edges: tuple[Fill, ...], parameters: Mapping[str, Tensor]) -> None:
        """Put a tensor's values, as the model has them, into the memory of the parameters that it fills.

        What is a parameter's memory as it lies in the file is only noted, for `read_straight`.
        """
        info = self._tensors[name]
        places = [(edge, part_of(parameters[edge.parameter], edge.parameter_part)) for edge in edges]
        if self._stream is not None and _as_it_lies(edges) and places[0][1].is_contiguous():
            if _same_bytes(info, places[0][1]):
                self._straight[name] = places[0][1]
                return
            self._read(self._stream, name, places[0][1])
        else:
            whole = to_torch(self._checkpoint.read(name)) if self._stream is None else self._staged(self._stream, info)
            for edge, place in places:
                place.copy_(edge.to_parameter(whole))
        self._consumed(info.nbytes)

    def fill_piece(self, edges: tuple[Fill, ...], parameter: Tensor) -> None:
        """Put the values of a parameter's piece that is here into it; a view of the map is read where it is copied from."""
        views = ((edge.parameter_part, edge.to_parameter(to_torch(self._checkpoint.read(edge.checkpoint)))) for edge in edges)
        piece = piece_of(joined(edges[0].parameter_shape, views), parameter)
        local(parameter).copy_(piece)
        self._consumed(piece.numel() * piece.element_size())

    def read_straight(self, threads: int) -> None:
        """Read what was noted, by so many threads."""
        if self._stream is not None:
            parts = (self._stream.parts(name, _bytes(place)) for name, place in self._straight.items())
            for count in results(chain.from_iterable(parts), threads):
                self._consumed(count)

    def _staged(self, stream: Stream, info: TensorInfo) -> Tensor:
        """The whole tensor in memory of its own."""
        staging = torch.empty(info.shape, dtype=TORCH_DTYPES.get(info.dtype, torch.float32))
        self._read(stream, info.name, staging)
        return staging

    def _read(self, stream: Stream, name: str, target: Tensor) -> None:
        """The bytes themselves where they are what the target holds, else a cache-sized piece after the other, converted."""
        if _same_bytes(self._tensors[name], target):
            stream.read_into(name, _bytes(target))
            return
        flat, done = target.view(-1), 0
        for view in stream.values(name):
            flat[done : done + view.data.size].copy_(to_torch(view))
            done += view.data.size

    def compare(self, plan: LoadPlan) -> None:
        """Check that tied tensors stored twice are the same bytes both times.

        Raises:
            PreflightError: listing those that are not.
        """
        first = {entry.parameter: entry.checkpoint for entry in plan.loads}
        different = []
        for entry in plan.duplicates:
            if not self._same(first[entry.parameter], entry.checkpoint):
                different.append(_unequal(first[entry.parameter], entry.checkpoint, self._checkpoint.header.path))
            self._consumed(self._tensors[entry.checkpoint].nbytes)
        if different:
            raise PreflightError(different)

    def _same(self, one: str, other: str) -> bool:
        infos = self._tensors[one], self._tensors[other]
        if (infos[0].dtype, infos[0].shape, infos[0].nbytes) != (infos[1].dtype, infos[1].shape, infos[1].nbytes):
            return False
        pieces = zip(self._pieces(one), self._pieces(other), strict=True)
        return all(np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in pieces)

    def _pieces(self, name: str) -> Iterator[memoryview]:
        if self._stream is not None:
            return self._stream.chunks(name)
        raw = self._checkpoint.read_raw(name)
        return (raw[start : start + _COMPARE] for start in range(0, len(raw), _COMPARE))

    def _consumed(self, count: int) -> None:
        self.bytes_read += count
        self._progress(count)


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's memory, writable."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type] # arrays are buffers


def _unequal(first: str, second: str, path: str) -> Finding:
    return Finding(
        rule=rules.INIT_007,
        subject=path,
        field=second,
        problem="a tied tensor is stored twice, and the two differ",
        expected=f"the bytes of {first}",
        found="other bytes",
        hint="Either the model is not tied (tie_word_embeddings false), or the file is wrong.",
    )


def _adopt(model: nn.Module, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Put the values in the parameters' places, under every name that a shared parameter has."""
    made = {id(old): nn.Parameter(values[name], requires_grad=old.requires_grad) for name, old in parameters.items()}
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False, remove_duplicate=False):
            setattr(module, name, made[id(old)])

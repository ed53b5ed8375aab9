"""A GGUF that was just written, opened again and compared with its source: keys, config, every tensor. Torch-free."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from attrs import field, frozen

from apr_train.artifact.convert import Conversion
from apr_train.artifact.gguf.plan import GgufPlan, differences, read_back
from apr_train.artifact.parts import read_part
from apr_train.checkpoint.checkpoint import Checkpoint, Progress
from apr_train.checkpoint.dtypes import Array, bf16_to_f32, f32_to_bf16, values_of
from apr_train.checkpoint.gguf import GgufReader
from apr_train.checkpoint.header import Tie
from apr_train.errors import OutputError, PreflightError
from apr_train.family.load_plan import LoadPlan, plan_load
from apr_train.family.name_map import Fill
from apr_train.family.operations import joined, moves_rows_only, part_of

_PLAIN = frozenset({"F32", "F16", "BF16"})
LARGEST_ERROR = 0.5
"""Relative error of a quantised tensor (root of the mean square) above which it is another tensor: two tensors that have
nothing to do with each other are 1.4 apart, the coarsest type here is 0.1 from its source."""
_SET_BY_QUANTISE = frozenset({"general.file_type", "general.quantization_version"})


@frozen(kw_only=True)
class Reopened:
    """A written file, open."""

    checkpoint: Checkpoint = field(repr=False)
    plan: LoadPlan = field(repr=False)
    """How it fills the source's parameters."""


@frozen(kw_only=True)
class Comparison:
    """What became of the tensors."""

    identical: int
    """Those with the source's values, rounded to their type where it is another float."""
    types: Mapping[str, int]
    """Type → number of tensors."""
    largest_error: float
    """Of the quantised tensors: root of the mean square of the error by that of the values; 0 where none is."""
    largest_at: str
    """The tensor that has it."""

    @property
    def quantised(self) -> int:
        """How many tensors are blocks."""
        return sum(count for name, count in self.types.items() if name not in _PLAIN)


@contextmanager
def reopened(plan: GgufPlan, path: Path, *, requantised: bool = False) -> Iterator[Reopened]:
    """Open the file by the reader of any GGUF, and compare what it says of the model with the plan.

    Args:
        plan: what was written.
        path: where.
        requantised: whether llama.cpp wrote the file from one that was written so, and has set the file's type itself.

    Raises:
        OutputError: the file says something else.
        FormatError: it cannot be read.
    """
    with GgufReader.open(path) as reader:
        _compare_keys(plan, reader, _SET_BY_QUANTISE if requantised else frozenset())
        for name, array in plan.made.items():
            if not np.array_equal(reader.read(name).data, array):
                raise _apart(name, "the table as it was made", "another one")
        config = plan.conversion.config
        if reader.header.tie.value is None:
            reader.header = attrs.evolve(reader.header, tie=Tie(config.tie_word_embeddings, "as the source"))
        for name, ours, theirs in differences(config, read_back(plan.conversion, reader.header)):
            raise _apart(name, ours, theirs)
        family = plan.conversion.family
        names = family.map_tensor_names(config, family.info.layout_of(reader.header))
        loads = plan_load(names, reader.header.tensors, where=str(path))
        if loads.findings or loads.fresh_parameters:
            raise PreflightError(loads.findings) if loads.findings else _apart(loads.fresh_parameters[0], "a tensor", "none")
        yield Reopened(checkpoint=reader, plan=loads)


def _compare_keys(plan: GgufPlan, reader: GgufReader, apart: frozenset[str]) -> None:
    for key, value in plan.metadata.items():
        found = reader.metadata.get(key)
        same = np.float32(value) == np.float32(found) if isinstance(value, float) and found is not None else value == found
        if key not in apart and not same:
            raise _apart(key, f"{value!r:.80}", f"{found!r:.80}")


def compare(plan: GgufPlan, again: Reopened, *, progress: Progress | None = None) -> Comparison:
    """Compare every parameter as the file gives it with what the source gives; memory is two parameters.

    `progress` is told of bytes of the source that were compared.

    Raises:
        OutputError: one is another.
    """
    types: Counter[str] = Counter()
    identical, largest, largest_at = 0, 0.0, ""
    for name, edges in again.plan.filled.items():
        infos = {edge.checkpoint: again.checkpoint.header.tensors[edge.checkpoint] for edge in edges}
        source = read_part(plan.conversion.checkpoint, plan.conversion.plan.filled[name], None)
        found = read_part(again.checkpoint, edges, None)
        ours, theirs = values_of(source.data, source.dtype), values_of(found.data, found.dtype)
        if all(info.dtype in _PLAIN for info in infos.values()):
            expected = _through(ours, edges, {info.name: info.dtype for info in infos.values()})
            _check_identical(name, expected, theirs)
        else:
            error = _error(ours, theirs)
            if not error <= LARGEST_ERROR:
                raise _apart(name, f"a relative error of at most {LARGEST_ERROR}", f"{error:.3g}")
            largest, largest_at = max((largest, largest_at), (error, next(iter(infos))))
        if progress is not None:
            progress(_stored_bytes(plan.conversion, name))
    for info in again.checkpoint.header.tensors.values():
        types[info.dtype] += 1
        identical += info.dtype in _PLAIN
    return Comparison(identical=identical, types=types, largest_error=largest, largest_at=largest_at)


def _stored_bytes(conversion: Conversion, parameter: str) -> int:
    """The source's bytes that a parameter is made of."""
    edges, tensors = conversion.plan.filled[parameter], conversion.header.tensors
    shares = (
        tensors[edge.checkpoint].nbytes * math.prod(edge.piece) / max(1, tensors[edge.checkpoint].elements) for edge in edges
    )
    return round(sum(shares))


def _through(values: Array, edges: tuple[Fill, ...], types: Mapping[str, str]) -> Array:
    """A parameter as it comes back, rounded to the file's types edge by edge, in the file's form where that has other values.

    Where rows only change places nothing of the operation is taken: a wrong order would be the same wrong one on both sides.
    """
    pieces = []
    for edge in edges:
        part, dtype = part_of(values, edge.parameter_part), types[edge.checkpoint]
        if moves_rows_only(edge.operation):
            pieces.append((edge.parameter_part, _rounded(part, dtype)))
        else:
            stored = _rounded(edge.operation.to_checkpoint(part), dtype)
            pieces.append((edge.parameter_part, edge.operation.to_parameter(stored)))
    whole: Array = joined(edges[0].parameter_shape, pieces)
    return whole


def _rounded(values: Array, dtype: str) -> Array:
    """Values to the nearest of a type, as float32."""
    wide = np.asarray(values).astype(np.float32)
    if dtype == "F32":
        return wide
    return bf16_to_f32(f32_to_bf16(wide)) if dtype == "BF16" else wide.astype(np.float16).astype(np.float32)


def _check_identical(name: str, expected: Array, found: Array) -> None:
    found = found.astype(np.float32)
    if np.array_equal(np.ascontiguousarray(found).view(np.uint32), np.ascontiguousarray(expected).view(np.uint32)):
        return
    where = np.flatnonzero(found.reshape(-1) != expected.reshape(-1))
    raise _apart(name, "the source's values", f"{len(where)} of {found.size} others")


def _error(ours: Array, theirs: Array) -> float:
    size = float(np.sqrt(np.mean(np.square(ours, dtype=np.float64))))
    apart = float(np.sqrt(np.mean(np.square(theirs - ours.astype(np.float32), dtype=np.float64))))
    return apart / size if size else (0.0 if apart == 0 else float("inf"))


def _apart(name: str, expected: Any, found: Any) -> OutputError:
    hint = "Nothing was put in place. This is a fault of apr-train or of the disk: report it with the command."
    problem = "the file that was written is not its source"
    return OutputError(problem, where="the written file", field=name, expected=expected, found=found, hint=hint)

"""Parts of parameters read from a checkpoint, through the edges of a name map, as numpy arrays. Torch-free.

Memory: the part that is asked for, where it is one edge's, or the one tensor that it lies in; a part that several tensors
overlap is cut out of the parameter put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from apr_train.checkpoint.checkpoint import Checkpoint, TensorView
from apr_train.checkpoint.dtypes import DTYPES, Array, DType, values_of
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.quantization import dequantize, ggml_types
from apr_train.family.name_map import Fill
from apr_train.family.operations import Identity, Operation, Region, joined, moves_rows_only, part_of

_FLOAT_NAMES = {"float16": "F16", "float32": "F32", "float64": "F64"}


def read_part(checkpoint: Checkpoint, edges: Sequence[Fill], part: Region | None) -> TensorView:
    """A part of a parameter (None: all of it) in the model's order; `edges` are all that fill the parameter.

    Raises:
        FormatError: for a tensor that cannot be read.
    """
    edge, inner = cover(edges, part)
    if edge is not None:
        return _piece(checkpoint, edge, inner)
    views = [(edge.parameter_part, _piece(checkpoint, edge, None)) for edge in edges]
    return TensorView(*_joined(edges[0].parameter_shape, views, part))


def cover(edges: Sequence[Fill], part: Region | None) -> tuple[Fill | None, Region | None]:
    """The one edge that a part of the parameter comes along, and the part's place in that edge's piece (None: all of it).

    The edge is None where several overlap the part.
    """
    for edge in edges:
        if edge.parameter_part == part:
            return edge, None
    return (edges[0], part) if len(edges) == 1 and edges[0].parameter_part is None else (None, None)


def in_form(view: TensorView, operation: Operation, change: Callable[[Any], Any]) -> TensorView:
    """A tensor after one direction of an operation; bf16, which numpy has as bits only, is decoded for one that computes."""
    if moves_rows_only(operation):
        return TensorView(view.dtype, change(view.data))
    array: Array = np.asarray(change(values_of(view.data, view.dtype)))
    return TensorView(_FLOAT_NAMES.get(array.dtype.name, view.dtype), array)


def _joined(shape: tuple[int, ...], views: list[tuple[Region | None, TensorView]], part: Region | None) -> tuple[str, Array]:
    types = {view.dtype for _, view in views}
    if len(types) == 1:
        return types.pop(), part_of(joined(shape, [(place, view.data) for place, view in views]), part)
    kind = np.result_type(*(values_of(view.data, view.dtype) for _, view in views))
    pieces = [(place, values_of(view.data, view.dtype).astype(kind)) for place, view in views]
    return _FLOAT_NAMES[kind.name], part_of(joined(shape, pieces), part)


def _piece(checkpoint: Checkpoint, edge: Fill, inner: Region | None) -> TensorView:
    """What an edge fills, or a part of that."""
    info, cut = checkpoint.header.tensors[edge.checkpoint], edge.checkpoint_part
    plain = isinstance(edge.operation, Identity)
    if cut is None and plain and inner is not None:
        return _cut(checkpoint, info, inner)
    view = checkpoint.read(edge.checkpoint) if cut is None else _cut(checkpoint, info, cut)
    done = in_form(view, edge.operation, edge.operation.to_parameter)
    return TensorView(done.dtype, part_of(done.data, inner))


def _cut(checkpoint: Checkpoint, info: TensorInfo, region: Region) -> TensorView:
    """A part of a tensor of the file; of blocks only those that the part lies in are decoded."""
    dtype = dtype_of(info)
    row = math.prod(info.shape[1:])
    if dtype is None or not dtype.quantized or dtype.prefix or region.dim != 0 or row % dtype.block:
        view = checkpoint.read(info.name)
        return TensorView(view.dtype, region.of(view.data))
    size = dtype.nbytes(row)
    raw = checkpoint.read_raw(info.name)[region.start * size : region.stop * size]
    floats = dequantize(dtype, raw, region.length * row, path=checkpoint.header.path, name=info.name)
    shape = info.shape[1:] if region.index else (region.length, *info.shape[1:])
    return TensorView("F32", floats.reshape(shape))


def dtype_of(info: TensorInfo) -> DType | None:
    """The element type of a tensor, GGML's blocks included; None for an unknown one."""
    known = DTYPES.get(info.dtype)
    return known or next((dtype for dtype in ggml_types().values() if dtype.name == info.dtype), None)

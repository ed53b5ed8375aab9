"""From any container to `.apr` or to a Hugging Face folder, tensor by tensor through a family's name map. Torch-free."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from attrs import field, frozen

from apr_train import rules
from apr_train.artifact.metadata import apr_metadata
from apr_train.artifact.parts import cover, in_form, read_part
from apr_train.artifact.targets import check_file
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.checkpoint import Checkpoint, Progress
from apr_train.checkpoint.dtypes import BLOCKS, DTYPES, FLOATS, cast_pieces
from apr_train.checkpoint.given_name import given_name
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.checkpoint.tie import resolve_tie
from apr_train.checkpoint.tokenizer_json import check_buildable
from apr_train.errors import Finding, FormatError, OutputError, PreflightError
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.load_plan import LoadPlan, plan_load
from apr_train.family.name_map import Fill
from apr_train.family.operations import RopeRowPermutation, joined, moves_rows_only, part_of
from apr_train.family.plugin import Family
from apr_train.family.registry import Registry
from apr_train.preflight.config_keys import config_key_findings
from apr_train.preflight.config_rules import config_from_file
from apr_train.preflight.family_rules import choose_family
from apr_train.preflight.tensor_rules import dtype_findings, rope_row_findings, tie_findings
from apr_train.preflight.wrapped_names import without_wrapper

Dtype = Literal["F32", "F16", "BF16", "keep"]
"""What a conversion can be asked for; `keep`: every tensor as it is stored, blocks too."""
Pieces = Iterator["np.ndarray[Any, Any] | memoryview"]


@frozen(kw_only=True)
class Move:
    """One written tensor of a conversion: the edges that it is made of, and its name, shape and type."""

    target: str
    shape: tuple[int, ...]
    dtype: str
    """What is written."""
    edges: tuple[Fill, ...]
    """From parts of parameters to the written tensor."""
    sources: tuple[tuple[Fill, ...], ...]
    """For each edge, the edges by which the file fills that edge's parameter."""
    tensors: tuple[TensorInfo, ...]
    """The file's tensors that the values come from."""
    nbytes: int
    """Share of the file's bytes that goes into the tensor."""

    @property
    def written(self) -> TensorInfo:
        """The tensor as it is written."""
        return TensorInfo(self.target, self.dtype, self.shape, DTYPES[self.dtype].nbytes(math.prod(self.shape)))

    @property
    def reorders(self) -> bool:
        """Whether the rows of heads change places."""
        return any(isinstance(edge.operation, RopeRowPermutation) for edge in self._all)

    @property
    def as_it_lies(self) -> bool:
        """Whether the written tensor is the file's, in the same order and shape."""
        return len(self.tensors) == len(self.edges) == 1 and all(edge.unchanged for edge in self._all)

    @property
    def obstacle(self) -> str:
        """Why rows of blocks cannot go into the tensor undecoded; empty when they can."""
        for edge in self._all:
            if not moves_rows_only(edge.operation):
                return f"through {type(edge.operation).__name__}"
            for part, shape in ((edge.checkpoint_part, edge.checkpoint_shape), (edge.parameter_part, edge.parameter_shape)):
                if part is not None and part.dim == len(shape) - 1:
                    return "where a row is cut"
        whole = all(DTYPES[tensor.dtype].has_whole_rows(tensor.shape) for tensor in self.tensors)
        return "" if whole else "where rows change places"

    @property
    def _all(self) -> tuple[Fill, ...]:
        return (*self.edges, *(source for group in self.sources for source in group))


@frozen(kw_only=True)
class Conversion:
    """A conversion with everything decided before a tensor is moved; make it with `prepare`."""

    checkpoint: Checkpoint = field(repr=False)
    family: Family = field(repr=False)
    config: ModelConfig
    header: Header = field(repr=False)
    """With the tie decided."""
    layout: Layout
    plan: LoadPlan = field(repr=False)
    warnings: tuple[Finding, ...] = ()
    """What the preflight would warn of in the metadata."""

    @property
    def hf_class(self) -> str:
        """The class whose names are written: the file's own if it is the family's, else the family's first."""
        classes = self.family.info.hf_classes
        known = self.header.hf_class if self.header.hf_class in classes else None
        return known or classes[0]

    def moves(self, dtype: Dtype | None, target: Layout | None = None) -> list[Move]:
        """One move for each tensor that is written, sorted by target name; `target` is the layout, by default that of `.apr`.

        Without a dtype floats stay as they are and block-quantised tensors become F32, the only type here that holds
        their values exactly.

        Raises:
            FormatError: for a type that cannot be kept.
        """
        target = target or Layout(names="hf", rope_rows="split-half", bare=self.layout.bare)
        name_map, filled = self.family.map_tensor_names(self.config, target), self.plan.filled
        moves = []
        for name, shape in name_map.tensors.items():
            edges = name_map.edges(name)
            there = [edge for edge in edges if edge.parameter in filled]
            if there:
                _check_complete(name, edges, there, self.header.path)
                moves.append(self._move(name, shape, edges, tuple(filled[edge.parameter] for edge in edges), dtype))
        return sorted(moves, key=lambda move: move.target)

    def _move(
        self,
        name: str,
        shape: tuple[int, ...],
        edges: tuple[Fill, ...],
        sources: tuple[tuple[Fill, ...], ...],
        dtype: Dtype | None,
    ) -> Move:
        used = [_used(edge, group) for edge, group in zip(edges, sources, strict=True)]
        tensors = {source.checkpoint: self.header.tensors[source.checkpoint] for group in used for source in group}
        share = sum(_share(edge, group, self.header) for edge, group in zip(edges, used, strict=True))
        move = Move(
            target=name,
            shape=shape,
            dtype=_written_dtype(name, tuple(tensors.values()), dtype, self.header.path),
            edges=edges,
            sources=sources,
            tensors=tuple(tensors.values()),
            nbytes=round(share),
        )
        _check_kept(move, self.header.path)
        return move

    @property
    def nbytes(self) -> int:
        """Bytes of the file's tensors that the conversion reads."""
        return sum(self.header.tensors[name].nbytes for name in self.plan.loaded)

    def data(self, move: Move) -> Pieces:
        """The bytes of one tensor as they are written, in pieces; memory is one written tensor.

        Raises:
            FormatError: when a value does not fit the type.
        """
        if move.dtype in BLOCKS:
            yield self._raw_rows(move)
            return
        whole: np.ndarray[Any, Any] | None = None
        for edge, sources in zip(move.edges, move.sources, strict=True):
            part = read_part(self.checkpoint, sources, edge.parameter_part)
            view = in_form(part, edge.operation, edge.operation.to_checkpoint)
            pieces = cast_pieces(view, move.dtype, path=self.header.path, name=move.tensors[0].name)
            if edge.checkpoint_part is None:
                yield from pieces
                return
            whole = np.empty(move.shape, DTYPES[move.dtype].numpy) if whole is None else whole
            edge.checkpoint_part.of(whole)[...] = np.concatenate([*pieces]).reshape(view.data.shape)
        if whole is not None:
            yield whole

    def _raw_rows(self, move: Move) -> np.ndarray[Any, Any] | memoryview:
        if move.as_it_lies:
            return self.checkpoint.read_raw(move.tensors[0].name)
        pieces = []
        for edge, sources in zip(move.edges, move.sources, strict=True):
            source, inner = cover(sources, edge.parameter_part)
            if source is not None:
                parameter = part_of(source.to_parameter(self._rows(source.checkpoint)), inner)
            else:
                shape = sources[0].parameter_shape[:-1]
                rows = [(item.parameter_part, item.to_parameter(self._rows(item.checkpoint))) for item in sources]
                parameter = part_of(joined((*shape, rows[0][1].shape[-1]), rows), edge.parameter_part)
            pieces.append((edge.checkpoint_part, edge.operation.to_checkpoint(parameter)))
        whole: np.ndarray[Any, Any] = joined((*move.shape[:-1], pieces[0][1].shape[-1]), pieces)
        return whole

    def _rows(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor of blocks as bytes, `[…, bytes of a row]`."""
        return np.frombuffer(self.checkpoint.read_raw(name), np.uint8).reshape(*self.header.tensors[name].shape[:-1], -1)


def _used(edge: Fill, sources: tuple[Fill, ...]) -> tuple[Fill, ...]:
    """Those of a parameter's edges that a written part of it needs."""
    source, _ = cover(sources, edge.parameter_part)
    return sources if source is None else (source,)


def _share(edge: Fill, sources: tuple[Fill, ...], header: Header) -> float:
    """Bytes of the file that an edge of a written tensor stands for."""
    elements = sum(math.prod(source.piece) for source in sources)
    infos = [(source, header.tensors[source.checkpoint]) for source in sources]
    nbytes = sum(info.nbytes * math.prod(source.piece) / max(1, info.elements) for source, info in infos)
    return nbytes * min(1.0, math.prod(edge.piece) / max(1, elements))


def _check_complete(name: str, edges: tuple[Fill, ...], there: list[Fill], path: str) -> None:
    lacking = [edge.parameter for edge in edges if edge not in there]
    if lacking:
        raise FormatError(
            "the source has a part of the tensor only", path=path, field=name, expected=", ".join(lacking), found="nothing"
        )


def plan_conversion(checkpoint: Checkpoint, registry: Registry, *, arch: str | None = None) -> Conversion:
    """Decide family, config and the way of every tensor; compare what is stored twice.

    Raises:
        PreflightError: with every fault: nobody's or several families' file, mathematics that the family does not
            implement, metadata that lacks a field, tensors missing, left over or misshapen, rows of q and k in an unknown
            order, tied tensors that differ.
        FormatError: for a file that is damaged.
    """
    family, findings = choose_family(registry, arch, checkpoint.header)
    if family is None:
        raise PreflightError(findings)
    wrapped = without_wrapper(checkpoint.header, family).findings
    if wrapped:
        raise PreflightError(wrapped)
    rows = rope_row_findings(checkpoint.header, family)
    header = resolve_tie(checkpoint)
    config, said = config_from_file(family, header)
    if config is None:
        raise PreflightError(said)
    layout = family.info.layout_of(header)
    plan = plan_load(family.map_tensor_names(config, layout), header.tensors, where=header.path)
    said += config_key_findings(header, config, family.info)
    warnings = [finding for finding in said if finding.severity == "warning"]
    faults = [finding for finding in (*header.findings, *said) if finding.severity == "error"]
    faults += [*rows, *plan.findings, *tie_findings(header, plan), *dtype_findings(header, plan)]
    faults = faults or _unequal_duplicates(checkpoint, plan)
    if faults:
        raise PreflightError(faults)
    return Conversion(
        checkpoint=checkpoint,
        family=family,
        config=config,
        header=header,
        layout=layout,
        plan=plan,
        warnings=tuple(warnings),
    )


def _unequal_duplicates(checkpoint: Checkpoint, plan: LoadPlan) -> list[Finding]:
    fills = {name: edges[0].checkpoint for name, edges in plan.filled.items()}
    return [
        Finding(
            rule=rules.INIT_007,
            subject=checkpoint.header.path,
            field=entry.checkpoint,
            problem="a tied tensor is stored twice, and the two differ",
            expected=f"the bytes of {fills[entry.parameter]}",
            found="other bytes",
        )
        for entry in plan.duplicates
        if checkpoint.read_raw(entry.checkpoint) != checkpoint.read_raw(fills[entry.parameter])
    ]


def written_dtype(source: str, dtype: Dtype | None) -> str:
    """The type in which a tensor of type `source` is written."""
    if dtype == "keep" or (dtype is None and source in FLOATS):
        return source
    return dtype or "F32"


def _written_dtype(name: str, tensors: tuple[TensorInfo, ...], dtype: Dtype | None, path: str) -> str:
    """The type of a written tensor: of several of different types the widest."""
    found = {written_dtype(tensor.dtype, dtype) for tensor in tensors}
    if len(found) == 1:
        return found.pop()
    if found <= set(FLOATS):
        return next(kind for kind in FLOATS if kind in found)
    raise FormatError(
        "tensors of different types that go into one cannot be kept",
        path=path,
        field=name,
        found=", ".join(f"{tensor.name} {tensor.dtype}" for tensor in tensors[:4]),
        hint="Take --dtype f32.",
    )


def _check_kept(move: Move, path: str) -> None:
    if move.dtype in FLOATS:
        return
    first = move.tensors[0]
    if first.dtype not in BLOCKS:
        raise FormatError(
            f"{first.dtype} cannot be kept: .apr has no id for it",
            path=path,
            field=first.name,
            expected=f"{', '.join(FLOATS)}, {', '.join(BLOCKS)}",
            found=first.dtype,
            hint="Leave --dtype out (exact, as F32), or take --dtype f32, f16 or bf16.",
        )
    obstacle = "" if move.as_it_lies else move.obstacle
    if obstacle:
        raise FormatError(f"{first.dtype} cannot be kept {obstacle}", path=path, field=first.name, hint="Take --dtype f32.")


def keeps_values(moves: Sequence[Move]) -> bool:
    """Whether every written tensor has the values that a load of the source has: of its own type, or of a wider one."""
    return all(move.dtype in ("F32", "F64") or all(tensor.dtype == move.dtype for tensor in move.tensors) for move in moves)


def provenance_of(header: Header) -> dict[str, Any]:
    """The provenance of a conversion's result: never a path, and a time only if it is inherited or asked for.

    `SOURCE_DATE_EPOCH` in the environment asks for one.
    """
    found = {"source": given_name(header.path), "original_format": header.format, **header.provenance}
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch and "created_at" not in found:
        found["created_at"] = _time_of(epoch)
    return found


_LAST_SECOND = 253402300799
"""Of the year 9999."""


def _time_of(epoch: str) -> str:
    if not epoch.isascii() or not epoch.isdigit() or len(epoch) > 12 or int(epoch) > _LAST_SECOND:
        expected = f"seconds since 1970, 0 to {_LAST_SECOND}"
        raise OutputError("no time", where="SOURCE_DATE_EPOCH", expected=expected, found=repr(epoch[:40]))
    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def import_to_apr(
    conversion: Conversion, target: Path, *, dtype: Dtype | None = None, progress: Progress | None = None
) -> list[Move]:
    """Write an `.apr` file: split-half rows, Hugging Face names, metadata, tokenizer and provenance of the source.

    Peak memory is one written tensor. Returns what was written.

    Raises:
        FormatError: when a tensor cannot be kept or does not fit its type.
        TokenizerError: when the source has a tokenizer that `.apr` cannot hold, named.
        OutputError: when the target is a file of the source or of a run, or cannot be written; an old file is then as it was.
    """
    check_file(target, conversion.checkpoint.files, suffix=".apr")
    if conversion.header.tokenizer is not None:
        check_buildable(conversion.header.tokenizer)
    moves = conversion.moves(dtype)
    written = [move.written for move in moves]
    metadata = apr_metadata(
        conversion.config,
        conversion.family.info,
        header=conversion.header,
        tokenizer=conversion.header.tokenizer,
        provenance=provenance_of(conversion.header),
        hf_class=conversion.hf_class,
    )
    if not keeps_values(moves):
        metadata.pop(REFERENCE, None)
    metadata["param_count"] = sum(tensor.elements for tensor in written)
    metadata["total_size"] = sum(tensor.nbytes for tensor in written)
    specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in written]
    with AprWriter(target, metadata, specs) as writer:
        for move in moves:
            writer.write(move.target, conversion.data(move))
            if progress is not None:
                progress(move.nbytes)
    return moves

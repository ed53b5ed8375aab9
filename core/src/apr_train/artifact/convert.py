"""From any container to `.apr` or to a Hugging Face folder, tensor by tensor through a family's name map. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from attrs import field, frozen

from apr_train import rules
from apr_train.artifact.metadata import apr_metadata
from apr_train.artifact.targets import check_file
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.checkpoint import Checkpoint, Progress, TensorView
from apr_train.checkpoint.dtypes import BLOCKS, DTYPES, FLOATS, cast_pieces
from apr_train.checkpoint.given_name import given_name
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.tie import resolve_tie
from apr_train.checkpoint.tokenizer_json import check_buildable
from apr_train.errors import Finding, FormatError, PreflightError
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.load_plan import LoadPlan, plan_load
from apr_train.family.name_map import Identity, Operation
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


@frozen
class Move:
    """One tensor of a conversion: what is read, how its rows are reordered, and the name and type it is written with."""

    source: TensorInfo
    target: str
    operations: tuple[Operation, Operation]
    dtype: str
    """What is written."""

    @property
    def written(self) -> TensorInfo:
        """The tensor as it is written."""
        return TensorInfo(self.target, self.dtype, self.source.shape, DTYPES[self.dtype].nbytes(self.source.elements))

    @property
    def reorders(self) -> bool:
        """Whether values change places."""
        return any(not isinstance(operation, Identity) for operation in self.operations)


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

    def moves(self, dtype: Dtype | None) -> list[Move]:
        """One move for each tensor that is written, sorted by target name.

        Without a dtype floats stay as they are and block-quantised tensors become F32, the only type here that holds
        their values exactly.

        Raises:
            FormatError: for a type that cannot be kept.
        """
        target = Layout(names="hf", rope_rows="split-half", bare=self.layout.bare)
        by_parameter = self.family.map_tensor_names(self.config, target).fills
        moves = []
        for entry in self.plan.loads:
            source = self.header.tensors[entry.checkpoint]
            there = by_parameter[entry.parameter]
            move = Move(source, there.checkpoint, (entry.operation, there.operation), written_dtype(source.dtype, dtype))
            _check_kept(move, self.header.path)
            moves.append(move)
        return sorted(moves, key=lambda move: move.target)

    def data(self, move: Move) -> Pieces:
        """The bytes of one tensor as they are written, in pieces.

        Raises:
            FormatError: when a value does not fit the type.
        """
        if move.dtype in BLOCKS:
            yield self._raw_rows(move)
            return
        view = self.checkpoint.read(move.source.name)
        array = move.operations[1].to_checkpoint(move.operations[0].to_parameter(view.data))
        yield from cast_pieces(TensorView(view.dtype, array), move.dtype, path=self.header.path, name=move.source.name)

    def _raw_rows(self, move: Move) -> np.ndarray[Any, Any] | memoryview:
        raw = self.checkpoint.read_raw(move.source.name)
        if not move.reorders:
            return raw
        rows = np.frombuffer(raw, np.uint8).reshape(move.source.shape[0], -1)
        array: np.ndarray[Any, Any] = move.operations[1].to_checkpoint(move.operations[0].to_parameter(rows))
        return array


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
    fills = {entry.parameter: entry.checkpoint for entry in plan.loads}
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


def _check_kept(move: Move, path: str) -> None:
    name = move.source.dtype
    if move.dtype in FLOATS:
        return
    if name not in BLOCKS:
        raise FormatError(
            f"{name} cannot be kept: .apr has no id for it",
            path=path,
            field=move.source.name,
            expected=f"{', '.join(FLOATS)}, {', '.join(BLOCKS)}",
            found=name,
            hint="Leave --dtype out (exact, as F32), or take --dtype f32, f16 or bf16.",
        )
    if move.reorders and not DTYPES[name].has_whole_rows(move.source.shape):
        raise FormatError(
            f"{name} cannot be kept where rows change places", path=path, field=move.source.name, hint="Take --dtype f32."
        )


def provenance_of(header: Header) -> dict[str, Any]:
    """The provenance of a conversion's result: never a path, and a time only if it is inherited or asked for.

    `SOURCE_DATE_EPOCH` in the environment asks for one.
    """
    found = {"source": given_name(header.path), "original_format": header.format, **header.provenance}
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch.isdigit() and "created_at" not in found:
        found["created_at"] = datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return found


def import_to_apr(
    conversion: Conversion, target: Path, *, dtype: Dtype | None = None, progress: Progress | None = None
) -> list[Move]:
    """Write an `.apr` file: split-half rows, Hugging Face names, metadata, tokenizer and provenance of the source.

    Peak memory is one tensor. Returns what was written.

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
    metadata["param_count"] = sum(tensor.elements for tensor in written)
    metadata["total_size"] = sum(tensor.nbytes for tensor in written)
    specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in written]
    with AprWriter(target, metadata, specs) as writer:
        for move in moves:
            writer.write(move.target, conversion.data(move))
            if progress is not None:
                progress(move.source.nbytes)
    return moves

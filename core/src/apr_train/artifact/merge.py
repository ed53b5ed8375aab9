"""A base and its adapter as one checkpoint, W + s·B·A, merged one tensor at a time as it is read. Torch-free."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
import numpy as np

from apr_train import rules
from apr_train.artifact.adapted_weights import AdaptedWeights
from apr_train.artifact.parts import cover, read_part
from apr_train.checkpoint.adapter_files import Adapter, open_adapter
from apr_train.checkpoint.checkpoint import Checkpoint, TensorView
from apr_train.checkpoint.companions import TOKENIZER
from apr_train.checkpoint.dtypes import DTYPES, FLOATS, Array, bytes_of, cast_pieces, values_of
from apr_train.checkpoint.header import Header, RopeRows, TensorInfo, TokenizerSpec
from apr_train.checkpoint.open import open_checkpoint, open_tokenizer
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.checkpoint.tie import resolve_tie
from apr_train.errors import AprTrainError, Finding, FormatError, PreflightError
from apr_train.family.card import Layout
from apr_train.family.name_map import Fill, NameMap, Tied
from apr_train.family.operations import Region, joined, part_of
from apr_train.family.registry import Registry
from apr_train.preflight.config_rules import config_from_file
from apr_train.preflight.family_rules import choose_family
from apr_train.run.adapted import BASE_NOTE, NAME_NOTE, AdaptedRun, adapted_run
from apr_train.run.folder import name_of
from apr_train.run.provenance import RUN_KEY

_OF_THE_BASE = frozenset({REFERENCE, RUN_KEY})
"""Metadata that is about the base alone: the loss that it has, the run that made it."""


class MergedCheckpoint:
    """A checkpoint like its base, with other values in the tensors that the adapter changes; closes the base.

    A changed tensor is put together in float32 when it is read, and not kept: memory is a few of them. It has the base's
    type, or float32 where the base's is quantised, or where `exact`.
    """

    def __init__(
        self,
        base: Checkpoint,
        adapter: Adapter,
        *,
        arch: str | None = None,
        tokenizer: TokenizerSpec | None = None,
        exact: bool = False,
    ) -> None:
        """Match the adapter with the base.

        Raises:
            PreflightError: a base that is no installed family's, or an adapter that does not fit it (ADAPTER-002).
        """
        names, layout, header = _maps(base, arch)
        self._base, self._adapter, self._names, self._file = base, adapter, names, layout
        self._weights = AdaptedWeights(adapter, names, subject=str(adapter.folder))
        changed = {edge.parameter for name in self._weights.changed for edge in names.edges(name)}
        infos = {name: self._info(info, changed, exact=exact) for name, info in header.tensors.items()}
        self._require_base(names, changed)
        self._changed = frozenset(name for name in infos if changed & self._parameters(name))
        names_of_both = f"{name_of(header.path)} + {name_of(adapter.folder)}"
        self.header = attrs.evolve(
            header,
            tensors=infos,
            tokenizer=tokenizer or header.tokenizer,
            extra={key: value for key, value in header.extra.items() if key not in _OF_THE_BASE},
            # it is another model than its base, whatever that is called
            provenance={**header.provenance, "name": name_of(adapter.folder), "source": names_of_both},
        )

    def _require_base(self, names: NameMap, changed: set[str]) -> None:
        """Refuse an adapter of what the base does not have: the head of a bare file."""
        held = self._base.header.tensors
        lacking = [
            edge.checkpoint for name in sorted(changed) for edge in self._file.fills[name] if edge.checkpoint not in held
        ]
        if lacking:
            problem, subject = "the adapter changes what the base does not have", str(self._adapter.folder)
            found = f"nothing of it in {self._base.header.path}"
            raise PreflightError(
                [Finding(rule=rules.ADAPTER_002, subject=subject, problem=problem, expected=lacking[0], found=found)]
            )

    def _parameters(self, name: str) -> set[str]:
        """The parameters that a tensor of the base fills, or is tied to."""
        return {entry.parameter for entry in self._file.by_checkpoint.get(name, ()) if isinstance(entry, Fill | Tied)}

    def _info(self, info: TensorInfo, changed: set[str], *, exact: bool) -> TensorInfo:
        if not changed & self._parameters(info.name) or (info.dtype in FLOATS and not exact):
            return info
        return TensorInfo(info.name, "F32", info.shape, DTYPES["F32"].nbytes(info.elements))

    @property
    def changed(self) -> frozenset[str]:
        """The tensors of the base that have other values."""
        return self._changed

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the base and of the adapter."""
        return *self._base.files, *self._adapter.files

    def read(self, name: str) -> TensorView:
        """The tensor, merged where the adapter changes it."""
        if name not in self._changed:
            return self._base.read(name)
        dtype, shape = self.header.tensors[name].dtype, self.header.tensors[name].shape
        view = TensorView("F32", self._merged(name))
        pieces = cast_pieces(view, dtype, path=self.header.path, name=name)
        return TensorView(dtype, np.concatenate([*pieces]).reshape(shape))

    def read_raw(self, name: str) -> memoryview:
        """The bytes of `read`."""
        return bytes_of(self.read(name).data) if name in self._changed else self._base.read_raw(name)

    def _merged(self, name: str) -> Array:
        """A tensor of the base's file in float32, through the parameters that it fills."""
        entries = self._file.by_checkpoint[name]
        if isinstance(entries[0], Tied):
            return self._part(entries[0].parameter, None)
        shape, edges = self.header.tensors[name].shape, self._file.edges(name)
        parts = ((edge, self._part(edge.parameter, edge.parameter_part)) for edge in edges)
        pieces = ((edge.checkpoint_part, edge.operation.to_checkpoint(part)) for edge, part in parts)
        return np.ascontiguousarray(joined(shape, pieces), dtype=np.float32)

    def _part(self, parameter: str, part: Region | None) -> Array:
        """A part of a parameter (None: all of it) in float32, changed in Hugging Face's form, which the adapter was made for.

        Of a stack of experts only those are read that the part is of.
        """
        edges = self._names.fills[parameter]
        edge, inner = cover(edges, part)
        if edge is not None:
            found: Array = part_of(edge.to_parameter(self._hugging_face(edge.checkpoint)), inner)
            return found
        pieces = ((edge.parameter_part, edge.to_parameter(self._hugging_face(edge.checkpoint))) for edge in edges)
        whole: Array = part_of(joined(edges[0].parameter_shape, pieces), part)
        return whole

    def _hugging_face(self, name: str) -> Array:
        """A tensor under Hugging Face's name, in float32, changed where the adapter does so."""
        edges = self._names.edges(name)
        pieces = ((edge.checkpoint_part, edge.operation.to_checkpoint(self._of_base(edge))) for edge in edges)
        whole = joined(edges[0].checkpoint_shape, pieces)
        return self._weights.change(name, whole, edges[0]) if name in self._weights.changed else whole

    def _of_base(self, edge: Fill) -> Array:
        """What the edge fills, as the base has it, in float32."""
        view = read_part(self._base, self._file.fills[edge.parameter], edge.parameter_part)
        return values_of(view.data, view.dtype).astype(np.float32, copy=False)

    def base_hash(self) -> str:
        """The content hash of the base."""
        return self._base.content_hash()

    @property
    def adapter(self) -> Adapter:
        """The adapter."""
        return self._adapter

    def content_hash(self) -> str:
        """SHA-256 over the base's hash and all of the adapter."""
        digest = hashlib.sha256(self._base.content_hash().encode())
        digest.update(repr(sorted(self._adapter.config.items())).encode(errors="replace"))
        for name in sorted(self._adapter.tensors):
            digest.update(repr((name, self._adapter.tensors[name].shape)).encode(errors="replace"))
            digest.update(self._adapter.raw(name))
        return digest.hexdigest()

    def close(self) -> None:
        """Close the base."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _maps(base: Checkpoint, arch: str | None) -> tuple[NameMap, NameMap, Header]:
    """The family's maps for Hugging Face's names and for the file's, and the file's header with its tie decided."""
    family, findings = choose_family(Registry.discover(), arch, base.header)
    if family is None:
        raise PreflightError(findings)
    header = resolve_tie(base)
    config, said = config_from_file(family, header)
    if config is None:
        raise PreflightError(said)
    layout = family.info.layout_of(header)
    return family.map_tensor_names(config, Layout()), family.map_tensor_names(config, layout), header


def merged_checkpoint(
    adapter: Path,
    base: str | Path,
    *,
    rope_layout: RopeRows | None = None,
    arch: str | None = None,
    tokenizer: str | None = None,
    verify: bool = True,
    exact: bool = False,
) -> MergedCheckpoint:
    """Open a base and an adapter for it as one checkpoint.

    Args:
        adapter: a folder with adapter_config.json and adapter_model.safetensors.
        base: any checkpoint.
        rope_layout: the user's word on the order of the base's rows of q and k.
        arch: the family, where none or several claim the base.
        tokenizer: a tokenizer.json or a folder with one; else the one in the adapter's folder, else the base's.
        verify: whether the checksum of an `.apr` base is checked.
        exact: whether changed tensors stay float32, as for a model that is run at once.

    Raises:
        FormatError: for a file that is not what it should be.
        PreflightError: as `MergedCheckpoint`.
    """
    opened = open_adapter(adapter)
    source = tokenizer or (adapter if (adapter / TOKENIZER).is_file() else None)
    spec = None if source is None else open_tokenizer(source)
    checkpoint = open_checkpoint(base, verify=verify, rope_layout=rope_layout)
    try:
        return MergedCheckpoint(checkpoint, opened, arch=arch, tokenizer=spec, exact=exact)
    except AprTrainError:
        checkpoint.close()
        raise


def merged_run(path: str | Path, *, verify: bool = True, exact: bool = False) -> MergedCheckpoint | None:
    """The model that a run's adapter makes of its base; None where the path is not that of a run that trained one.

    Raises:
        FormatError: ADAPTER-002 for a base that is gone or another one; else as `merged_checkpoint`.
        RunError: as `adapted_run`.
    """
    found = adapted_run(path)
    if found is None:
        return None
    try:
        merged = merged_checkpoint(
            found.adapter,
            found.base,
            rope_layout=found.rope_layout,
            arch=found.arch,
            tokenizer=found.tokenizer,
            verify=verify,
            exact=exact,
        )
    except FormatError as error:
        if error.finding.subject == found.base:
            raise FormatError.of([_moved(found, error.finding)]) from error
        raise
    if merged.base_hash() != found.base_hash:
        merged.close()
        raise FormatError.of([_other_base(found)])
    return merged


def base_is_wanted(folder: Path) -> FormatError:
    """What is said where an adapter's base is not known; of a folder that holds no adapter, that."""
    adapter = open_adapter(folder)
    named = adapter.config.get("base_model_name_or_path") or adapter.note.get(NAME_NOTE)
    return FormatError(
        "an adapter alone, and nothing here says where its base lies",
        rule=rules.ADAPTER_002,
        path=folder,
        expected="--base BASE, the checkpoint that it was trained on",
        found=f"it names {named!r:.120}" if isinstance(named, str) and named else "no name in it",
        hint=f"apr-train merge {shlex.quote(str(folder))} --base BASE -o X.apr",
    )


def _elsewhere(found: AdaptedRun) -> str:
    run = shlex.quote(str(found.adapter))
    return f"Say where the base is now: apr-train merge {run} --base BASE -o X.apr, then take X.apr."


def _moved(found: AdaptedRun, finding: Finding) -> Finding:
    return attrs.evolve(finding, rule=rules.ADAPTER_002, field="the base of the run's adapter", hint=_elsewhere(found))


def _other_base(found: AdaptedRun) -> Finding:
    return Finding(
        rule=rules.ADAPTER_002,
        subject=found.base,
        field="the base of the run's adapter",
        problem="not the checkpoint that the adapter was trained on",
        expected=f"hash {(found.base_hash or 'of nothing')[:12]}",
        found="another content",
        hint=_elsewhere(found),
    )


def base_remarks(merged: MergedCheckpoint) -> list[Finding]:
    """A warning where the adapter notes another base than the one that was given, which may be a copy in another container."""
    noted = merged.adapter.note.get(BASE_NOTE)
    if noted is None or noted == merged.base_hash():
        return []
    return [
        Finding(
            rule=rules.ADAPTER_002,
            subject=merged.header.path,
            problem="not the file that the adapter was trained on",
            expected=f"hash {noted[:12]}",
            found=f"hash {merged.base_hash()[:12]}",
            hint="A conversion or an export of that file is as good; another model's weights are not.",
            severity="warning",
        )
    ]

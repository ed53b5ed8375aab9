"""`apr_train.convert` and `apr_train.export`: any checkpoint to `.apr`, to a Hugging Face folder, or to a GGUF file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from attrs import field, frozen

from apr_train.api.options import BLOCKS, BY_LLAMA_CPP, FLOATS, Place
from apr_train.artifact.conversion import Converted, converted, opened_conversion
from apr_train.checkpoint.header import RopeRows
from apr_train.errors import ConfigError, Finding
from apr_train.run.paths import user_path
from apr_train.run.progress import Bar, no_bar, progress_bar
from apr_train.suggest import did_you_mean

if TYPE_CHECKING:
    from apr_train.artifact.convert import Conversion, Dtype
    from apr_train.artifact.gguf.export import GgufResult
    from apr_train.artifact.gguf.reopened import Reopened

Warn = Callable[[Iterable[Finding]], None]
"""Told of findings that are no errors."""
Float = Literal["f32", "f16", "bf16"]
Block = Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k_m"]


@frozen(kw_only=True)
class Exported:
    """A GGUF file that was written."""

    path: Path
    card: Path
    """Beside the file."""
    family: str
    architecture: str
    """What llama.cpp calls it."""
    dtypes: Mapping[str, int]
    """Type → tensors of it; empty where the file was not opened again."""
    nbytes: int
    verified: bool
    """Whether it was opened again and compared with its source: floats are identical then."""
    measured: Mapping[str, Any] | None = field(repr=False)
    """Of a quantised file: perplexity beside the source's, and the share of equal most likely tokens."""


def convert(
    source: Place,
    output: Place,
    *,
    arch: str | None = None,
    dtype: Literal["f32", "f16", "bf16", "keep"] | None = None,
    rope_layout: RopeRows | None = None,
    verify: bool = True,
    warn: Warn | None = None,
    progress: bool = False,
) -> Converted:
    """Convert GGUF, safetensors or a Hugging Face folder to .apr, as `apr-train import` does.

    Args:
        source: the checkpoint.
        output: the .apr file; an earlier one is replaced.
        arch: family; may be left out when exactly one installed family claims the checkpoint.
        dtype: of all tensors; keep: as stored, blocks too; otherwise floats as stored, blocks as f32.
        rope_layout: order of the rows of q and k, for a checkpoint that does not say.
        verify: whether the checksum of an .apr source is checked.
        warn: called with findings that are no errors.
        progress: whether bars are drawn on standard error.

    Raises:
        AprTrainError: for whatever is wrong; nothing is half-written.
    """
    from apr_train.artifact.convert import import_to_apr

    _check_choice("dtype", dtype, (*FLOATS, "keep"))
    target, bar = _path(output), progress_bar if progress else no_bar
    with _opened(source, arch, rope_layout, verify, warn, bar) as conversion:
        with bar(f"writing {target.name}", conversion.nbytes) as advance:
            moves = import_to_apr(conversion, target, dtype=_stored(dtype), progress=advance)
        return converted(conversion, moves, target)


@overload
def export(
    source: Place,
    output: Place,
    *,
    format: Literal["hf"] = ...,
    arch: str | None = ...,
    dtype: Float | None = ...,
    rope_layout: RopeRows | None = ...,
    shard_size: int | None = ...,
    verify: bool = ...,
    warn: Warn | None = ...,
    progress: bool = ...,
) -> Converted: ...


@overload
def export(
    source: Place,
    output: Place,
    *,
    format: Literal["gguf"],
    arch: str | None = ...,
    dtype: Float | Block | None = ...,
    rope_layout: RopeRows | None = ...,
    shard_size: None = ...,
    verify: bool = ...,
    warn: Warn | None = ...,
    progress: bool = ...,
) -> Exported: ...


def export(
    source: Place,
    output: Place,
    *,
    format: Literal["hf", "gguf"] = "hf",
    arch: str | None = None,
    dtype: Float | Block | None = None,
    rope_layout: RopeRows | None = None,
    shard_size: int | None = None,
    verify: bool = True,
    warn: Warn | None = None,
    progress: bool = False,
) -> Converted | Exported:
    """Convert any checkpoint to a folder that transformers loads, or to a GGUF file, as `apr-train export` does.

    Args:
        source: the checkpoint.
        output: the folder, or the .gguf file.
        format: hf: a folder; gguf: a file.
        arch: family; may be left out when exactly one installed family claims the checkpoint.
        dtype: of all tensors (gguf: of the matrices; blocks only there); otherwise floats as stored, blocks as f32.
        rope_layout: order of the rows of q and k, for a checkpoint that does not say.
        shard_size: hf: bytes of weights per file.
        verify: whether the checksum of an .apr is checked and, of a GGUF, what was written is compared with its source.
        warn: called with findings that are no errors.
        progress: whether bars are drawn on standard error.

    Raises:
        AprTrainError: for whatever is wrong; nothing is half-written.
    """
    _check_choice("format", format, ("hf", "gguf"))
    _check_choice("dtype", dtype, FLOATS if format == "hf" else (*FLOATS, *BLOCKS, *BY_LLAMA_CPP))
    if format == "gguf" and shard_size is not None:
        raise ConfigError("a GGUF is one file", where="shard_size", expected="none", found=shard_size)
    target, bar = _path(output), progress_bar if progress else no_bar
    with _opened(source, arch, rope_layout, verify, warn, bar) as conversion:
        if format == "gguf":
            result = write_gguf(conversion, target, dtype, verify=verify, bar=bar)
            (warn or _unheard)(result.plan.warnings)
            return _exported(conversion, result, target)
        return write_folder(conversion, target, dtype, shard_size, bar=bar)


def write_folder(conversion: Conversion, target: Path, dtype: str | None, shard_size: int | None, *, bar: Bar) -> Converted:
    """Write a folder that transformers loads.

    Raises:
        AprTrainError: as `export_to_folder`.
    """
    from apr_train.artifact.export import SHARD_SIZE, export_to_folder

    with bar(f"writing {target.name}", conversion.nbytes) as advance:
        size = shard_size or SHARD_SIZE
        moves = export_to_folder(conversion, target, dtype=_stored(dtype), shard_size=size, progress=advance)
    return converted(conversion, moves, target)


def write_gguf(conversion: Conversion, target: Path, dtype: str | None, *, verify: bool, bar: Bar) -> GgufResult:
    """Write a GGUF file and its card, and compare it with its source; of blocks, what they cost is measured.

    Raises:
        AprTrainError: as `export_to_gguf`.
    """
    from apr_train.artifact.gguf.export import export_to_gguf

    def prove(again: Reopened) -> Mapping[str, Any] | None:
        from apr_train.inference.gguf_proof import measure_quantisation

        if conversion.header.tokenizer is None:
            return None
        with bar("measuring", unit="rows") as done:
            return measure_quantisation(conversion, again, done=done).to_card()

    name = dtype if dtype in BY_LLAMA_CPP else dtype and dtype.upper()
    with bar(f"writing {target.name}", conversion.nbytes * (2 if verify else 1)) as advance:
        return export_to_gguf(conversion, target, dtype=name, verify=verify, prove=prove, progress=advance)


def _exported(conversion: Conversion, result: GgufResult, target: Path) -> Exported:
    return Exported(
        path=target,
        card=result.card,
        family=conversion.family.name,
        architecture=result.plan.architecture,
        dtypes=dict(sorted(Counter(result.comparison.types).items())) if result.comparison else {},
        nbytes=result.nbytes,
        verified=result.comparison is not None,
        measured=result.proof,
    )


def _opened(
    source: Place, arch: str | None, rope_layout: RopeRows | None, verify: bool, warn: Warn | None, bar: Bar
) -> AbstractContextManager[Conversion]:
    _check_choice("rope_layout", rope_layout, get_args(RopeRows))
    return opened_conversion(_path(source), arch=arch, rope_layout=rope_layout, verify=verify, warn=warn or _unheard, bar=bar)


def _path(place: Place) -> Path:
    return Path(user_path(os.fspath(place)))


def _stored(dtype: str | None) -> Dtype | None:
    """A type as conversions call it."""
    known: dict[str | None, Dtype] = {"f32": "F32", "f16": "F16", "bf16": "BF16", "keep": "keep"}
    return known.get(dtype)


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        expected = ", ".join(choices)
        raise ConfigError("no such choice", where=name, expected=expected, found=value, hint=did_you_mean(value, choices))


def _unheard(findings: Iterable[Finding]) -> None:
    """Nobody asked for warnings."""

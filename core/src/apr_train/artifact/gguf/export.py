"""A GGUF file of a checkpoint: planned, written beside its place, compared, and put there with a card. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from attrs import field, frozen

from apr_train.artifact.convert import Conversion
from apr_train.artifact.gguf.card import CardFacts, card_beside, card_text, check_card
from apr_train.artifact.gguf.k_quants import K_QUANTS, llama_cpp, quantise
from apr_train.artifact.gguf.plan import GgufPlan, plan_gguf
from apr_train.artifact.gguf.reopened import Comparison, Reopened, compare, reopened
from apr_train.artifact.targets import check_file
from apr_train.atomic import replace_file, write_file
from apr_train.checkpoint.checkpoint import Progress
from apr_train.checkpoint.gguf_writing import QUANTISED, GgufDtype, write_gguf

Prove = Callable[[Reopened], Mapping[str, Any] | None]
"""What measures a quantised file that is open again beside its source: name → number, for the card."""


@frozen(kw_only=True)
class GgufResult:
    """What was written."""

    plan: GgufPlan = field(repr=False)
    comparison: Comparison | None
    """None: nothing was compared."""
    proof: Mapping[str, Any] | None
    """What was measured of a quantised file."""
    nbytes: int
    card: Path


def export_to_gguf(
    conversion: Conversion,
    target: Path,
    *,
    dtype: str | None = None,
    verify: bool = True,
    prove: Prove | None = None,
    progress: Progress | None = None,
) -> GgufResult:
    """Write the file, and a card beside it; each as a whole or not at all.

    Args:
        conversion: the source, with family and config decided.
        target: the file.
        dtype: of the matrices: a `GgufDtype`, or a name of `K_QUANTS`; None: floats as they are stored, blocks as F32.
        verify: whether the written file is opened again and compared before it is put in place.
        prove: called with a quantised file that was compared.
        progress: told of bytes of the source that were written, and again of those that were compared.

    Raises:
        OutputError: when the target is a file of the source or of a run, cannot be written, or is not its source afterwards.
        ConfigError: a config, a family or a quantisation that a GGUF does not have.
        FormatError: when a value does not fit the type, or the source lacks a head.
        TokenizerError: when a GGUF cannot hold the tokenizer.
    """
    check_file(target, conversion.checkpoint.files, suffix=".gguf", only=True)
    card = card_beside(target)
    check_card(card, conversion.checkpoint.files)
    package = llama_cpp(str(dtype), Path(conversion.header.path), target) if dtype in K_QUANTS else None
    plan = plan_gguf(conversion, _written(dtype), path=target)
    comparison = proof = None
    with replace_file(target) as file:
        part = Path(file.name)
        if package is None:
            _write(plan, part, progress)
        else:
            _write_by_llama_cpp(plan, part, package, str(dtype), beside=target, progress=progress)
        if verify:
            with reopened(plan, part, requantised=package is not None) as again:
                comparison = compare(plan, again, progress=progress)
                proof = prove(again) if prove is not None and comparison.quantised else None
        nbytes = os.fstat(file.fileno()).st_size
    facts = CardFacts(name=target.name, dtype=dtype, nbytes=nbytes, comparison=comparison, proof=proof)
    write_file(card, card_text(plan, facts).encode())
    return GgufResult(plan=plan, comparison=comparison, proof=proof, nbytes=nbytes, card=card)


def _written(dtype: str | None) -> GgufDtype | None:
    """The type that is written here: float32 for what llama.cpp quantises."""
    known: dict[str, GgufDtype] = {"F32": "F32", "F16": "F16", "BF16": "BF16", **{name: name for name in QUANTISED}}
    return "F32" if dtype in K_QUANTS else None if dtype is None else known[dtype]


def _write(plan: GgufPlan, path: Path, progress: Progress | None) -> None:
    def data(name: str) -> Any:
        yield from plan.data(name)
        if progress is not None:
            progress(plan.share(name))

    write_gguf(path, plan.architecture, plan.metadata, plan.tensors, data)


def _write_by_llama_cpp(
    plan: GgufPlan, path: Path, package: ModuleType, name: str, *, beside: Path, progress: Progress | None
) -> None:
    """Write the float32 file of the plan on the disk of `beside`, and let llama.cpp quantise it to `path`."""
    with TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.absolute().parent) as folder:
        plain = Path(folder) / "f32.gguf"
        _write(plan, plain, progress)
        quantise(package, name, plain, path)

"""The keywords that several functions share, each with its type; what a caller passes beside them is refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from apr_train.errors import ConfigError, Finding
from apr_train.run.asked import named_values
from apr_train.run.paths import user_path
from apr_train.run.settings import Settings
from apr_train.run.settings_file import with_values
from apr_train.suggest import did_you_mean

if TYPE_CHECKING:
    from apr_train.inference.ready import Wanted

Place = str | os.PathLike[str]
"""A path as text or as a `Path`."""

FLOATS = ("f32", "f16", "bf16")
BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
BY_LLAMA_CPP = ("q4_k_m",)
"""What llama.cpp quantises: the keys of `artifact.gguf.k_quants.K_QUANTS`."""


class LoadOptions(TypedDict, total=False):
    """Which model, and how it shall run; None is the same as leaving a keyword out."""

    arch: str | None
    """Family; may be left out when exactly one installed family claims the checkpoint."""
    tokenizer: Place | None
    """A tokenizer.json, or a folder with one, instead of the checkpoint's own."""
    rope_layout: Literal["split-half", "adjacent"] | None
    """Order of the rows of q and k, for a checkpoint that does not say."""
    device: str | None
    """cpu or cuda; cuda when there is one."""
    precision: Literal["fp32", "bf16", "bf16-weights"] | None
    """Of a model to write with: float32 on a CPU, else the fastest; of one to measure: the run's, or the fastest."""
    attention: str | None
    """A backend that is forced."""


class WritingOptions(TypedDict, total=False):
    """How a decoder goes on, as with `apr-train generate`."""

    max_tokens: int | None
    """Tokens at most; 256, or what the positions allow, otherwise."""
    temperature: float
    """0, the default: the most likely token; above: draw, flatter the higher."""
    top_p: float | None
    """Draw from the likeliest tokens that together have this probability."""
    top_k: int | None
    """Draw from this many of the likeliest tokens."""
    seed: int
    """Of the draws; 0 by default."""
    stop: str | Sequence[str]
    """The text ends before any of these."""
    emit: Callable[[str], None] | None
    """Called with the text piece by piece, as soon as it is certain."""


class EvalOptions(LoadOptions, total=False):
    """On what a model is measured, as with `apr-train eval`: each is the run's, or a new run's, where it is left out."""

    data: Place | Sequence[Place] | None
    """Files, folders, globs or JSON lines, of which the part that a run holds out is measured."""
    val_data: Place | Sequence[Place] | None
    """Held-out text of one's own, all of which is measured; `data` is not read then."""
    text_field: str | None
    gitignore: bool | None
    validation_fraction: float | None
    sequence_length: int | None
    batch_size: int | None
    batches: int | None
    """Batches to measure on; 0: the whole held-out text."""
    parse_special: bool | None
    document_mask: bool | None
    packing: Literal["concatenate", "best-fit"] | None
    mask_probability: float | None


def check_names(given: Iterable[str], known: type, *, where: str) -> None:
    """Refuse keywords that a TypedDict does not have: Python takes any where several are passed on.

    Raises:
        ConfigError: for all of them, each with the closest one.
    """
    names = sorted(known.__annotations__)
    findings = [
        Finding(problem="no such keyword", subject=where, field=name, hint=did_you_mean(name, names))
        for name in given
        if name not in names
    ]
    if findings:
        raise ConfigError.of(findings)


def wanted_model(path: Place, given: Mapping[str, Any], *, where: str) -> Wanted:
    """Which model the keywords of `LoadOptions` ask for; their values are those of a run's settings.

    Raises:
        ConfigError: for a name or a value that there is not.
    """
    from apr_train.inference.ready import Wanted

    check_names(given, LoadOptions, where=where)
    values = named_values(given, where=where)
    with_values(Settings(), values)  # refuses bad values
    place = values.pop("tokenizer", None)
    return Wanted(path=user_path(os.fspath(path)), tokenizer=None if place is None else user_path(place), **values)

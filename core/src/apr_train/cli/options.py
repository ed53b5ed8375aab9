"""The options that several commands share, each defined once; one that is a run's setting is made from its metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from apr_train.run.settings import GROUPS, flag

if TYPE_CHECKING:
    from apr_train.artifact.convert import Dtype

FC = TypeVar("FC", bound=Callable[..., Any])
_SETTINGS = {item.name: item.metadata for cls in GROUPS.values() for item in attrs.fields(cls)}
_ALIASES = {"sequence_length": ("--seq-len",)}
_DTYPES: dict[str, Dtype] = {"f32": "F32", "f16": "F16", "bf16": "BF16", "keep": "keep"}
MODEL = ("arch", "tokenizer", "rope_layout", "device", "precision", "attention")
"""The parameters that `model_options` adds: fields of `inference.ready.Wanted`."""


def setting(name: str, *, text: str | None = None, limits: bool = False, **how: Any) -> Callable[[FC], FC]:
    """The option of a run's setting; its parameter is None, or (), where the user says nothing.

    Args:
        name: the setting's, in `run.settings`.
        text: help in place of the setting's own, for a command in which the option means something special.
        limits: refuse a whole number below the setting's least as wrong usage; otherwise whoever takes the value does.
        how: what else `click.option` shall know: another `type` or `default`, a `metavar`.
    """
    meta = _SETTINGS[name]
    switch = f"{flag(name)}/{flag(f'no_{name}')}" if meta["kind"] is bool else flag(name)
    how = {"type": _type(meta, limits), "multiple": meta["many"], "default": None} | how
    return click.option(switch, *_ALIASES.get(name, ()), name, help=text or meta["text"], **how)


def _type(meta: dict[str, Any], limits: bool) -> Any:
    if meta["choices"]:
        return click.Choice(meta["choices"])
    return click.IntRange(min=meta["minimum"]) if limits else meta["kind"]


def tokenizer_option(function: FC) -> FC:
    """`--tokenizer` where a checkpoint is read and no tokenizer is trained."""
    return setting(
        "tokenizer", metavar="PATH", text="A tokenizer.json, or a folder with one, instead of the checkpoint's own."
    )(function)


def model_options(function: FC) -> FC:
    """Which model, and how it shall run: the options of every command that runs a checkpoint."""
    precision = setting("precision", text="As in training. Default: the run's, or the fastest.")
    special = {"tokenizer": tokenizer_option, "precision": precision}
    for name in reversed(MODEL):
        function = special.get(name, setting(name))(function)
    return function


def dtype_option(*names: str, text: str) -> Callable[[FC], FC]:
    """`--dtype`, which gives its command a `Dtype`; `names` are those of `_DTYPES` that are allowed."""
    return click.option(
        "--dtype", type=click.Choice(names), callback=lambda _, __, name: None if name is None else _DTYPES[name], help=text
    )


def verify_option(text: str) -> Callable[[FC], FC]:
    """`--verify/--no-verify`."""
    return click.option("--verify/--no-verify", default=True, help=text)


def output_option(text: str, *, folder: bool) -> Callable[[FC], FC]:
    """`-o`, the folder or the file that a command is for."""
    kind = click.Path(path_type=Path, file_okay=not folder, dir_okay=folder)
    return click.option("-o", "--output", required=True, type=kind, help=text)


def json_option(text: str = "Print JSON.") -> Callable[[FC], FC]:
    """`--json`, the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)

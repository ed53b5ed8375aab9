"""The options that several commands share, each defined once; one that is a run's setting is made from its metadata."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from apr_train.cli.output import keep_apart
from apr_train.cli.usage import Number, SettingChoice, WholeNumber
from apr_train.run.option import ALONE, PATH, flag, options_of
from apr_train.run.paths import user_path
from apr_train.run.settings import GROUPS
from apr_train.run.settings_paths import expanded

if TYPE_CHECKING:
    from apr_train.artifact.convert import Dtype

FC = TypeVar("FC", bound=Callable[..., Any])
_SETTINGS = {item.name: item.metadata for cls in GROUPS.values() for item in options_of(cls)}
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
    if meta[PATH]:
        how = {"callback": lambda _, __, value: _at_home(value)} | how
    if meta[ALONE] is not None:
        how = {"is_flag": False, "flag_value": meta[ALONE]} | how
    how = {"type": _type(name, meta, limits), "multiple": meta["many"], "default": None} | how
    return click.option(switch, *_ALIASES.get(name, ()), name, help=text or meta["text"], **how)


def _at_home(value: Any) -> Any:
    return Path(user_path(str(value))) if isinstance(value, Path) else expanded(value)


class UserPath(click.Path):
    """A path, with the home folder for `~`, which shells leave alone in `--option=~/x`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does, of the path that is meant."""
        return super().convert(user_path(os.fspath(value)), param, ctx)


def _type(name: str, meta: dict[str, Any], limits: bool) -> Any:
    if meta["choices"]:
        return SettingChoice(name, meta["choices"])
    if limits:
        return click.IntRange(min=meta["minimum"])
    return {int: WholeNumber(), float: Number()}.get(meta["kind"], meta["kind"])


def config_option(function: FC) -> FC:
    """`--config`, the settings of a run in a file."""
    text = "Settings as TOML, such as a run's config.toml."
    return click.option("--config", type=UserPath(path_type=Path), help=text)(function)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parameters that `setting` adds, those that the user gave."""
    return {name: value for name, value in values.items() if value not in (None, ())}


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
    kind = UserPath(path_type=Path, file_okay=not folder, dir_okay=folder)
    return click.option("-o", "--output", required=True, type=kind, help=text)


def json_option(text: str = "Print JSON.") -> Callable[[FC], FC]:
    """`--json`, the parameter `as_json`; with it, standard output has the JSON and nothing else."""

    def callback(context: click.Context, _: click.Parameter, as_json: bool) -> bool:
        if as_json:
            keep_apart(context)
        return as_json

    return click.option("--json", "as_json", is_flag=True, callback=callback, help=text)

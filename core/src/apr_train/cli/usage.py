"""What click says of a mistyped command line, with what to type instead."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from apr_train.run.option import flag
from apr_train.run.other_names import advice, meant_value, plain, settings_called

_SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "%": 1e-2}
_SCALED = re.compile(r"(?P<number>[\d.]+)\s*(?P<scale>[kmb%])", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}([,.']\d{3})+")
_SHOWN = 3


class SettingChoice(click.Choice[str]):
    """The values of a setting; one that another trainer has is answered with ours."""

    def __init__(self, setting: str, choices: Sequence[str]) -> None:
        super().__init__(choices)
        self._setting = setting

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """As click does, with what the value is called here."""
        return _followed(super().get_invalid_choice_message(value, ctx), meant_value(self._setting, str(value), flag))


class WholeNumber(click.types.IntParamType):
    """An integer; `2k`, `1,000` and `1e3` are answered with the digits to write."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """As click does."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            number = _number(_ungrouped(str(value)))
            whole = number is not None and number.is_integer()
            self.fail(_followed(error.message, f"Write {number:.0f}." if whole else None), param, ctx)


class Number(click.types.FloatParamType):
    """A real number; `0,1`, `5%` and `2k` are answered with the digits to write."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As click does."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            number = _number(str(value).replace(",", "."))
            self.fail(_followed(error.message, None if number is None else f"Write {number:g}."), param, ctx)


def _number(text: str) -> float | None:
    """What people mean by a number that Python does not read; None for anything else."""
    factor = 1.0
    if scaled := _SCALED.fullmatch(text):
        text, factor = scaled["number"], _SCALES[scaled["scale"].lower()]
    try:
        return float(text) * factor
    except ValueError:
        return None


def _ungrouped(text: str) -> str:
    return re.sub(r"\D", "", text) if _GROUPED.fullmatch(text) else text


def _followed(message: str, hint: str | None) -> str:
    return message if hint is None else f"{message} {hint}"


def unknown_option(error: click.NoSuchOption, typed: Sequence[str], *, trains: bool) -> click.UsageError:
    """The same error, saying which option the name stands for where that is known.

    Args:
        error: click's own.
        typed: the command line; of `-lr` click tells no more than `-l`.
        trains: whether the command takes a run's settings.
    """
    if error.ctx is None:
        return error
    name = error.option_name
    if not name.startswith("--"):
        name = next((word for word in typed if word.startswith(name)), name).partition("=")[0]
    options = [param for param in error.ctx.command.params if isinstance(param, click.Option)]
    spellings = {plain(option): option for param in options for option in (*param.opts, *param.secondary_opts)}
    hint = _instead(name, spellings, trains=trains)
    return error if hint is None else click.UsageError(f"No such option {name!r}. {hint}", error.ctx)


def _instead(name: str, spellings: dict[str, str], *, trains: bool) -> str | None:
    """Which option a name stands for, or what to do without one; None when nothing is known of it."""
    if plain(name) in spellings:
        return f"Did you mean {spellings[plain(name)]!r}?"
    negated = name.startswith("--no-")
    called = [setting for setting in settings_called(name.removeprefix("--no") if negated else name) if setting in spellings]
    if called:
        return f"Here that is {' or '.join(map(flag, (f'no_{item}' if negated else item for item in called)))}."
    return advice(name, flag) if trains else None


class OptionsCommand(click.Command):
    """A command without arguments: words that belong to no option are explained, a pattern that the shell expanded first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        typed = list(args)
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if rest:
            ctx.fail(self._of_extra(typed, rest))
        return rest

    def _of_extra(self, typed: list[str], rest: list[str]) -> str:
        start = next((at for at in range(len(typed)) if typed[at : at + len(rest)] == rest), 0)
        option, value = _option_before(typed[:start])
        if any(option in param.opts for param in self.params if isinstance(param, click.Option) and param.multiple):
            return _of_pattern(option, [value, *rest])
        words = "an unexpected word" if len(rest) == 1 else "unexpected words"
        return f"Got {words} ({shlex.join(_few(rest))}). Each value follows its option: --init FILE, --data PATH."


def _option_before(words: list[str]) -> tuple[str, str]:
    """The option that took the last word, and that value."""
    if words and words[-1].startswith("--"):
        option, _, value = words[-1].partition("=")
        return option, value
    return (words[-2], words[-1]) if len(words) > 1 else ("", "")


def _of_pattern(option: str, values: list[str]) -> str:
    """What to say of several values behind an option that takes one at a time."""
    message = f"{option} takes one value, and here are {len(values)} ({shlex.join(_few(values))})."
    suffixes = {Path(value).suffix for value in values}
    if len(suffixes) == 1 and (suffix := suffixes.pop()):
        return f"{message} Quote a pattern, or the shell expands it: {option} '{_pattern(values, suffix)}'"
    repeated = " ".join(f"{option} {shlex.quote(value)}" for value in values[:_SHOWN])
    more = " …" if len(values) > _SHOWN else ""
    return f"{message} Quote a pattern, or the shell expands it; else give the option again: {repeated}{more}"


def _pattern(values: list[str], suffix: str) -> str:
    """The shortest pattern that the shell may have made these values of."""
    folders = {Path(value).parent for value in values}
    if len(folders) == 1:
        return str(folders.pop() / f"*{suffix}")
    above = os.path.commonpath(folders) if len({folder.is_absolute() for folder in folders}) == 1 else ""
    return str(Path(above, "**", f"*{suffix}"))


def _few(words: list[str]) -> list[str]:
    return words if len(words) <= _SHOWN else [*words[:_SHOWN], "…"]

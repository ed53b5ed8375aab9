"""The options of every command that runs a model: which one, and how."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from apr_train.inference.ready import Examined, Ready

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_OPTIONS: tuple[_Decorator, ...] = (
    click.option("--arch", help="Family; may be left out when exactly one installed family claims the file."),
    click.option("--tokenizer", metavar="PATH", help="A tokenizer.json, instead of the checkpoint's own."),
    click.option(
        "--rope-layout", type=click.Choice(["split-half", "adjacent"]), help="Row order of q and k, if the file does not say."
    ),
    click.option("--device", help="cpu or cuda; cuda when there is one."),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "bf16-weights"]),
        help="As in training. Default: the run's, or the fastest.",
    ),
    click.option("--attention", help="Force one attention backend, or fail with its reason."),
)
NAMES = ("arch", "tokenizer", "rope_layout", "device", "precision", "attention")
"""The parameters that `model_options` adds."""


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def say(text: str) -> None:
    """A message beside the results: on stderr, so that a pipe gets the results alone."""
    click.echo(text, err=True)


def load(examined: Examined, **how: Any) -> Ready:
    """Load with a progress bar; `how` goes to `make_ready`."""
    from apr_train.cli.progress import progress_bar
    from apr_train.inference.ready import make_ready

    with progress_bar("loading", examined.total_bytes) as progress:
        return make_ready(examined, progress=progress, **how)


def text_of(value: str, option: str) -> str:
    """An option's text; `-` stands for all of standard input.

    Raises:
        DataError: when that is not UTF-8.
    """
    from apr_train.errors import DataError

    if value != "-":
        return value
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise DataError("standard input is not UTF-8 text", where=f"{option} -", found=found) from error

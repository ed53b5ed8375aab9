"""The group of commands: lazily imported, `train` when no command is named, one clear message for every error."""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import util
from typing import Any, NoReturn, cast

import click

from apr_train.errors import AprTrainError
from apr_train.run.terminal import broken, columns
from apr_train.suggest import closest

TRAIN = "train"
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

COMMANDS = {
    TRAIN: ("train", "Train a model; what `apr-train --arch …` runs."),
    "plugins": ("plugins", "List the installed families, and broken plugins with the reason."),
    "new-family": ("new_family", "Write the package of a new family."),
    "verify": ("verify", "Measure an installed family, and write its certificate."),
    "inspect": ("inspect_", "Show what a checkpoint says about itself."),
    "validate": ("validate", "Check a checkpoint file, byte for byte."),
    "check": ("check", "Run the preflight: every fault of a run, before it starts."),
    "plan": ("plan", "Tell what a run will hold on each GPU, and what fits."),
    "tokenize": ("tokenize", "Make the tokens of a run ahead of it."),
    "import": ("import_", "Convert GGUF or a Hugging Face folder to .apr."),
    "export": ("export", "Convert a checkpoint to a Hugging Face folder, or to a GGUF."),
    "merge": ("merge", "Merge an adapter into its base."),
    "eval": ("eval_", "Measure a checkpoint's loss."),
    "generate": ("generate", "Continue a text."),
    "stamp": ("stamp", "Write metadata into a checkpoint."),
    "publish": ("publish", "Make a folder that Hugging Face tools load."),
    "report": ("report", "Summarise a run."),
    "diff": ("diff", "Compare two checkpoints or runs."),
}
"""Command → module under `apr_train.cli` (its attribute `command`), and the line for the list of commands."""


class CommandGroup(click.Group):
    """Resolves a command by importing its module only; options without a command are `train`'s."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands whose module exists, in the order of the table."""
        return [name for name, (module, _) in COMMANDS.items() if util.find_spec(f"{__package__}.{module}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and take its `command`."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{__package__}.{COMMANDS[cmd_name][0]}")
        return cast(click.Command, module.command)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, which by itself would look for the closest name among commands that are imported already."""
        names = self.list_commands(ctx)
        if args[0] not in names:
            known = "" if closest(args[0], names) else f"; known: {', '.join(names)}"
            raise click.NoSuchCommand(args[0], f"No such command {args[0]!r}{known}.", possibilities=names, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take `--debug` from anywhere, and put `train` before options that are not the group's own."""
        ctx.obj = {"debug": "--debug" in args, "typed": args}
        args = [arg for arg in args if arg != "--debug"]
        own = {name for param in self.get_params(ctx) for name in param.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = [TRAIN, *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors become one message and an exit code, an interrupt is no traceback."""
        debug = bool((ctx.obj or {}).get("debug"))
        try:
            with _debug_log() if debug else nullcontext():
                return super().invoke(ctx)
        except click.NoSuchOption as error:
            raise _at_words(_explained(error, (ctx.obj or {}).get("typed", []))) from error
        except click.UsageError as error:
            raise _at_words(error) from error
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except AprTrainError as error:
            _fail(ctx, error, error.exit_code, debug=debug)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click leaves quietly when the reader of a pipe has gone
            _fail(ctx, error, 1, debug=debug)


def _explained(error: click.NoSuchOption, typed: list[str]) -> click.UsageError:
    """The error with what to type instead; the table of names is imported only then."""
    from apr_train.cli.usage import unknown_option

    return unknown_option(error, typed, trains=error.ctx is not None and error.ctx.command.name == TRAIN)


def _at_words(error: click.UsageError) -> click.UsageError:
    """The error whose message, as click shows it on a terminal, breaks at words."""
    shown = "Error: "
    text = broken(f"{shown}{error.format_message()}", columns(sys.stderr), indent=2)
    return click.UsageError(text.removeprefix(shown), error.ctx)


@contextmanager
def _debug_log() -> Iterator[None]:
    """Print the core's log on stderr: what a plugin raised is there even when it became a finding among others."""
    import logging

    log, handler = logging.getLogger("apr_train"), logging.StreamHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _fail(ctx: click.Context, error: Exception, exit_code: int, *, debug: bool) -> NoReturn:
    """Say what is wrong on stderr, under the traceback when `--debug` asks for it, and leave."""
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.echo(broken(f"Error: {_told(error)}", columns(sys.stderr), indent=2), err=True)
    ctx.exit(exit_code)


def _told(error: Exception) -> str:
    """An error's message; the faults of a tensor in many layers are one line."""
    if not isinstance(error, AprTrainError) or len(error.findings) == 1:
        return str(error)
    from apr_train.cli.by_layer import by_layer

    return str(AprTrainError.of(by_layer(error.findings)))


def print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Answer `--version`; the metadata is read only then."""
    if value:
        from importlib.metadata import version

        click.echo(f"apr-train {version('apr-train')}")
        ctx.exit()

"""The command line as a whole: which command runs, what an error looks like, and its exit code."""

import os
import signal
import subprocess
import sys

import click
import pytest
from apr_train.cli import cli
from apr_train.cli.group import COMMANDS, CommandGroup
from apr_train.errors import ConfigError, Finding, PreflightError
from click.testing import CliRunner

FINDING = Finding(rule="R-1", subject="x.apr", problem="wrong")
ERRORS = {
    "config": ConfigError("bad width", where="x.apr", hint="Mend it."),
    "preflight": PreflightError([FINDING]),
    "disk": PermissionError(13, "Permission denied", "x.apr"),
    "interrupt": KeyboardInterrupt(),
    "bug": RuntimeError("a bug"),
}


@click.command("train")
@click.option("--arch")
@click.argument("rest", nargs=-1)
def fake_train(arch, rest):
    click.echo(f"train {arch} {list(rest)}")


@click.command("inspect")
@click.argument("kind")
def fake_inspect(kind):
    raise ERRORS[kind]


class Group(CommandGroup):
    def list_commands(self, ctx):
        return ["train", "inspect"]

    def get_command(self, ctx, cmd_name):
        return {"train": fake_train, "inspect": fake_inspect}.get(cmd_name)


@pytest.fixture
def run():
    group = click.command(cls=Group)(click.option("--debug", is_flag=True, expose_value=False)(lambda: None))
    return lambda *arguments: CliRunner().invoke(group, arguments)


def test_options_without_a_command_train(run):
    assert run("--arch", "x").output == "train x []\n"
    assert run("--arch=x", "file").output == "train x ['file']\n"
    assert run("train", "--arch", "x").output == "train x []\n"


def test_a_mistyped_command_offers_the_closest_one(run):
    done = run("inspct", "x.apr")
    assert done.exit_code == 2
    assert "No such command 'inspct'. Did you mean 'inspect'?" in done.stderr


def test_a_word_that_is_like_no_command_lists_them(run):
    done = run("zzz")
    assert done.exit_code == 2
    assert "No such command 'zzz'; known: train, inspect.\n" in done.stderr


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("config", 1, "Error: x.apr: bad width. Mend it.\n"),
        ("preflight", 3, "Error: R-1: x.apr: wrong\n"),
        ("disk", 1, "Error: [Errno 13] Permission denied: 'x.apr'\n"),
        ("interrupt", 130, "\nInterrupted.\n"),
    ],
)
def test_an_error_is_one_message_on_stderr_with_its_own_exit_code(run, kind, code, message):
    done = run("inspect", kind)
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", message)


@pytest.mark.parametrize("arguments", [("--debug", "inspect", "config"), ("inspect", "config", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(run, arguments):
    done = run(*arguments)
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("Error: x.apr: bad width. Mend it.\n")


def test_a_bug_is_not_dressed_up_as_a_users_error(run):
    assert isinstance(run("inspect", "bug").exception, RuntimeError)


def listed():
    with click.Context(cli) as ctx:
        return cli.list_commands(ctx)


@pytest.mark.parametrize("name", listed())
def test_every_listed_command_exists_under_its_name_with_the_help_of_the_list(name):
    with click.Context(cli) as ctx:
        command = cli.get_command(ctx, name)
    assert command.name == name
    assert command.help
    done = CliRunner().invoke(cli, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert f"Usage: cli {name}" in done.output


def test_the_help_lists_commands_without_importing_one():
    done = CliRunner().invoke(cli, ["--help"])
    assert done.exit_code == 0
    assert all(COMMANDS[name][1] in done.output for name in listed())
    assert "3 the preflight found" in done.output


def test_no_arguments_show_the_help():
    assert "Usage:" in CliRunner().invoke(cli, []).output


MAIN = [sys.executable, "-c", "from apr_train.cli import main; main()"]


def test_a_reader_that_goes_away_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*MAIN, "plugins", "--json"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(writer)
    assert "Traceback" not in done.stderr


SLEEPY = """
import time, click
from apr_train.cli import group
@click.command("plugins")
def command():
    click.echo("ready")
    time.sleep(30)
group.CommandGroup.get_command = lambda self, ctx, name: command
from apr_train.cli import main
main()
"""


def test_an_interrupt_ends_the_process_cleanly():
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPY, "plugins"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "\nInterrupted.\n")

"""What commands print: plain where nobody looks, structured where a program reads."""

import json
import subprocess
import sys

import click
import pytest
from apr_train.cli.output import emit_findings, emit_json, emit_pairs, emit_table, emit_text, tell
from apr_train.errors import Finding


def test_a_table_in_a_pipe_is_aligned_and_nothing_is_cut(capsys):
    emit_table(("name", "what"), [("a", "x" * 300), ("longer", "[bold]y")], title="All")
    assert capsys.readouterr().out == f"All\nname    what\na       {'x' * 300}\nlonger  [bold]y\n"


def test_a_table_on_a_terminal_shows_brackets_as_they_are(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    emit_table(("name",), [("[red]x",)])
    assert "[red]x" in capsys.readouterr().out


@pytest.mark.parametrize("width", [24, 30, 40, 120])
def test_a_terminal_of_any_width_shows_every_word_whole(capsys, monkeypatch, width):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    words = ["a-distribution", "1.2.3", "first", "second"]
    emit_table(("name", "version", "presets"), [("a-distribution", "1.2.3", "first, second")], title="All")
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert all(any(word in line for line in lines) for word in ["All", "version", *words])
    assert max(map(len, lines)) <= max(width, len("  presets  first, second"))


def test_a_table_without_rows_is_its_heading(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    emit_table(("name", "version"), [])
    assert "version" in capsys.readouterr().out


def test_json_has_attrs_objects_as_objects(capsys):
    emit_json({"finding": Finding(rule="R", subject="w", problem="p"), "set": {"b", "a"}, "tuple": (1,)})
    data = json.loads(capsys.readouterr().out)
    assert data["finding"]["id"] == "R"
    assert (data["set"], data["tuple"]) == (["a", "b"], [1])


def test_json_refuses_what_it_cannot_say():
    with pytest.raises(TypeError, match="object is not JSON-able"):
        emit_json(object())


def test_pairs_are_padded_to_one_width(capsys):
    emit_pairs({"a": 1, "long": None})
    assert capsys.readouterr().out == "a     1\nlong  None\n"


def test_findings_go_to_stderr_errors_first(capsys):
    emit_findings(
        [Finding(rule="W", subject="w", problem="p", severity="warning"), Finding(rule="E", subject="w", problem="p")]
    )
    assert capsys.readouterr().err == "error E: w: p\nwarning W: w: p\n"


PRINTS = """
import ctypes, os, sys
import click
from apr_train.cli.options import json_option
from apr_train.cli.output import emit_json

@click.command()
@json_option()
def command(as_json):
    print("python")
    os.write(1, b"descriptor\\n")
    ctypes.CDLL(None).printf(b"from C\\n")
    emit_json({"a": 1})

command()
"""


def test_json_stands_alone_whatever_prints_while_it_is_made():
    done = subprocess.run([sys.executable, "-c", PRINTS, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"a": 1}
    assert sorted(done.stderr.split("\n")) == ["", "descriptor", "from C", "python"]


def test_what_is_not_finite_is_null_in_json(capsys):
    emit_json({"a": float("nan"), "b": [float("inf"), -float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": None, "b": [None, None, 1.5]}


STREAMS = """
import ctypes, os
import click
from apr_train.cli.output import emit_table, emit_text, keep_apart

@click.command()
@click.pass_context
def command(context):
    keep_apart(context)
    for token in "abc":
        print("python")
        os.write(1, b"descriptor\\n")
        ctypes.CDLL(None).printf(b"from C\\n")
        emit_text(token)
    emit_table(("x", "y"), [(1, 2)])
    print("the end")

command()
"""


def test_a_text_stands_alone_whatever_prints_between_two_tokens():
    done = subprocess.run([sys.executable, "-c", STREAMS], capture_output=True, text=True, check=True)
    assert done.stdout == "abcx  y\n1  2\n"
    assert sorted(done.stderr.split()) == sorted(["python", "descriptor", "from", "C"] * 3 + ["the", "end"])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_model_s_text_is_itself_in_a_pipe_and_harmless_on_a_terminal(capsys, monkeypatch, terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    emit_text("a\x1b[2J\n\tb")
    assert capsys.readouterr().out == ("a\\x1b[2J\n\tb" if terminal else "a\x1b[2J\n\tb")


def test_on_a_terminal_values_break_at_words_under_their_column(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    emit_pairs({"a": "one two three four five six", "long": "/a/path/that/is/longer/than/the/terminal"})
    tell("a notice that is longer than thirty columns")
    assert capsys.readouterr().out.splitlines() == [
        "a     one two three four five",
        "      six",
        "long",
        "      /a/path/that/is/longer/than/the/terminal",
        "a notice that is longer than",
        "  thirty columns",
    ]


def test_a_finding_on_a_terminal_breaks_at_words_and_keeps_its_colour(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    emit_findings([Finding(rule="E", subject="where", problem="something that takes more than a line")])
    assert click.unstyle(capsys.readouterr().err).splitlines() == ["error E: where: something that", "  takes more than a line"]

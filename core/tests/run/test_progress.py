"""Bars: on a terminal only, beside the results, and not for work that is done at once."""

import sys

import pytest
from apr_train.run import progress
from apr_train.run.progress import doing, progress_bar, stage_bars


def on_a_terminal(monkeypatch):
    """Make both streams one, and every bar appear at once; no fixture, for pytest puts in new streams between its phases."""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


def test_no_bar_is_drawn_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with progress_bar("x", 10) as advance:
        advance(10)
    with stage_bars() as report:
        assert report is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("unit", "shown"), [("B", "5/10 bytes"), ("rows", "5/10")])
def test_a_bar_counts_bytes_or_things_and_leaves_stdout_to_the_results(monkeypatch, capsys, unit, shown):
    on_a_terminal(monkeypatch)
    with progress_bar("reading", 10, unit=unit) as advance:
        advance(2)
        advance(3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "reading" in captured.err
    assert shown in captured.err


def test_short_work_on_a_terminal_shows_no_bar(monkeypatch, capsys):
    on_a_terminal(monkeypatch)
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with progress_bar("reading", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_the_stages_of_work_have_a_bar_each_one_after_another(monkeypatch, capsys):
    on_a_terminal(monkeypatch)
    with stage_bars() as report:
        report("read", 4, 8)
        report("read", 8, 8)
        report("tokenise", 30, 100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "8/8 bytes" in captured.err
    assert captured.err.index("read") < captured.err.index("tokenise")
    assert "30/100 bytes" in captured.err


def test_what_is_being_done_is_said_on_a_terminal_and_taken_away(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "30")
    with doing("loading the weights of a model with a long name"):
        assert capsys.readouterr().err == "loading the weights of a mod…"
    assert capsys.readouterr().err == "\r\x1b[K"


def test_elsewhere_nothing_is_said(capsys, monkeypatch):
    with doing("loading"):
        pass
    on_a_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with doing("loading"):
        pass
    assert capsys.readouterr() == ("", "")

"""Text on a terminal breaks at its words; what is no terminal, or a dumb one, gets it as it is."""

import io
import os
import pty
import textwrap

import pytest
from apr_train.run.terminal import broken, columns, is_drawn_on
from hypothesis import given
from hypothesis import strategies as st

TEXT = "warning: whole documents do not make up the share that is held out, expected documents (--validation-fraction)"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@given(st.lists(st.text("abcdef-/.", min_size=1, max_size=30), min_size=1, max_size=30), st.integers(20, 100))
def test_it_breaks_as_pythons_own_textwrap(words, width):
    text = " ".join(words)
    wrapped = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    assert broken(text, width).split("\n") == wrapped


@given(st.text(" ab\n漢é", max_size=200), st.integers(20, 60), st.integers(0, 12))
def test_no_word_is_cut_lost_or_moved(text, width, indent):
    assert broken(text, width, indent=indent).split() == text.split()


def test_lines_that_are_made_stand_under_the_text_and_its_own_lines_stay():
    assert broken("a b\n  " + "word " * 5 + "end", 20, indent=2) == "a b\n  word word word\n    word word end"


def test_a_path_is_never_broken_and_wide_letters_count_twice():
    path = "/a/very/long/path/that/does/not/fit/in/the/line"
    assert broken(f"see {path} now", 30) == f"see\n{path}\nnow"
    assert broken("漢字漢字漢字 漢字漢字漢字", 20) == "漢字漢字漢字\n漢字漢字漢字"


@pytest.mark.parametrize("width", [None, 19, 0])
def test_without_a_width_nothing_is_broken(width):
    assert broken(TEXT, width) == TEXT


def test_the_width_is_the_terminals(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    main, side = pty.openpty()
    try:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 73, 0, 0))
        with os.fdopen(side, "w", closefd=False) as stream:
            assert columns(stream) == 73
            monkeypatch.setenv("COLUMNS", "50")
            assert columns(stream) == 50
    finally:
        os.close(main)
        os.close(side)
    assert columns(io.StringIO()) is None
    monkeypatch.delenv("COLUMNS")
    assert columns(Terminal()) is None


@pytest.mark.parametrize(
    ("environment", "drawn"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False),
     ({"TERM": "xterm", "NO_COLOR": ""}, True), ({}, True)],
)  # fmt: skip
def test_a_dumb_terminal_and_who_wants_no_colour_get_plain_lines(monkeypatch, environment, drawn):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_drawn_on(Terminal()) is drawn
    assert not is_drawn_on(io.StringIO())

"""What a terminal shows of a run."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from apr_train.run.metrics import Metrics
from apr_train.training.display import LiveDisplay, PlainDisplay, _TimeLeft, closing, figures, fitted, make_display, step_line
from apr_train.training.loop import Outcome
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

LINE = Metrics(
    step=5, loss=2.5, lr=1e-3, grad_norm=1.25, tokens=640, tokens_per_s=812.0, step_time=0.1, memory=10**9, mfu=0.234
)
VALIDATED = evolve(LINE, step=6, val_loss=2.25, perplexity=9.49, source_val_loss={"code": 1.5, "prose": 2.75})
SOURCES = "code 1.5000 prose 2.7500"
NOTICE = "source code will have ended with step 1,234; the others share its part from there, as long as there are some"


class Screen:
    """As much of a terminal as a display needs: rows of fixed width, the cursor, erasing; any other sequence is an error."""

    TOKENS = re.compile(r"\x1b\[(\??\d*)([A-Za-z])|\x1b|[\r\n]|[^\x1b\r\n]")

    def __init__(self, width):
        self.width, self.rows, self.row, self.column = width, [""], 0, 0

    def feed(self, text):
        for found in self.TOKENS.finditer(text):
            if found[2]:
                self._control(found[1], found[2])
            elif found[0] == "\r":
                self.column = 0
            elif found[0] == "\n":
                self._down()
                self.column = 0
            else:
                assert found[0] != "\x1b"
                self._put(found[0])
        return self

    def _down(self):
        self.row += 1
        self.rows += [""] * (self.row + 1 - len(self.rows))

    def _put(self, letter):
        if self.column == self.width:  # only now: a letter in the last column leaves the cursor behind it
            self._down()
            self.column = 0
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + letter + row[self.column + 1 :]
        self.column += 1

    def _control(self, value, name):
        if name == "K":
            self.rows[self.row] = "" if value == "2" else self.rows[self.row][: self.column]
        elif name == "A":
            self.row = max(0, self.row - int(value or 1))
        else:
            assert (name, value) in {("h", "?25"), ("l", "?25")} or name == "m"

    def shown(self):
        return [row.rstrip() for row in self.rows if row.strip()]


class Watched:
    """A display on a terminal of some width, and what the terminal shows after each event."""

    def __init__(self, width, steps=300, done=0):
        self.console = terminal(width)
        self.display, self.screen = LiveDisplay(steps, done, self.console), Screen(width)

    def rows(self):
        self.display._live.refresh()
        return self.read()

    def read(self):
        self.screen.feed(self.console.file.getvalue())
        self.console.file.truncate(0)
        self.console.file.seek(0)
        return self.screen.shown()


def terminal(width=160):
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, _environ={"TERM": "xterm"})


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_line_never_wraps_and_has_step_loss_and_time_left_at_any_width(width):
    watched = Watched(width)
    with watched.display as display:
        assert watched.rows() == ["step   0/300  measuring the loss that the run starts from …"[:width]]
        display.step(Metrics(step=0, val_loss=6.9, perplexity=992.27))
        assert watched.rows()[1:] == ["step   0/300  taking the first step …"]
        for step in range(1, 301):
            display.step(evolve(LINE, step=step, loss=10.0 / step, tokens_per_s=10.0**step if step < 7 else 812.0))
            *before, line = watched.rows()
            assert before == ["step   0/300  val 6.9000 (perplexity 992.27)"]
            assert re.match(rf"step {step:>3}/300  loss {10.0 / step:>7.4f}  .*\d:\d\d:\d\d left", line)
            assert len(line) <= width


@pytest.mark.parametrize("width", [60, 80, 160])
def test_what_stays_breaks_at_words_and_nothing_else_is_left_at_the_end(width):
    watched = Watched(width)
    with watched.display as display:
        display.step(LINE)
        watched.rows()
        display.say(NOTICE)
        display.step(VALIDATED)
        assert "left" in watched.rows()[-1]
    rows = watched.read()
    assert " ".join(rows).split() == f"{NOTICE} step 6/300 loss 2.5000 val 2.2500 (perplexity 9.49) {SOURCES}".split()
    assert all(len(row) <= width for row in rows)


def test_the_live_display_starts_where_a_resumed_run_stands():
    watched = Watched(80, 10, 4)
    with watched.display as display:
        assert watched.rows() == ["step  4/10  going on …"]
        display.step(evolve(LINE, step=5))
        assert watched.rows()[-1].startswith("step  5/10  loss  2.5000  ━━━━━━─────")


def test_brackets_and_colons_are_no_markup():
    watched = Watched(80, 10)
    with watched.display as display:
        display.say("[red]not markup[/red] :smile:")
    assert watched.read() == ["[red]not markup[/red] :smile:"]


@given(st.integers(20, 200), st.integers(1, 10**6), st.floats(1e-9, 1e6), st.floats(0, 1.5), st.floats(0, 1e8))
def test_no_number_makes_the_line_too_long(width, step, loss, mfu, speed):
    line = evolve(LINE, step=step, loss=loss, mfu=mfu, tokens_per_s=speed, grad_norm=loss)
    parts = {**figures(line, 10**6), "left": "  1:02:03 left"}
    shown = fitted(parts, step / 10**6, width)
    assert len(shown) <= width
    assert shown.startswith(f"step {step:>7}/1000000"[:width])


def test_figures_keep_their_column_from_line_to_line():
    lines = [
        evolve(LINE, step=step, loss=loss, grad_norm=norm, tokens_per_s=speed, mfu=mfu, memory=memory)
        for step, loss, norm, speed, mfu, memory in [
            (1, 10.8321, 123.4567, 9.0, 0.004, 5_000_000),
            (1000, 0.1234, 0.5, 123456.0, 0.55, 123_000_000_000),
            (99, 0.0, 1e-9, 0.0, 1.01, 10**9),
        ]
    ]
    for words in ("/1000", "loss ", "lr ", "grad ", " tokens/s", "mfu ", "B"):
        assert len({step_line(line, 1000).rindex(words) for line in lines}) == 1, words


def test_the_time_left_is_that_of_the_last_steps_and_runs_between_them():
    now = [100.0]
    left = _TimeLeft(lambda: now[0])
    assert left(10) is None
    now[0] += 60  # the first one warms up
    left.tick()
    assert left(9) == 60 * 9
    for _ in range(4):
        now[0] += 2
        left.tick()
    assert left(5) == pytest.approx(2 * 5)
    now[0] += 3
    assert left(5) == pytest.approx(2 * 5 - 3)
    now[0] += 30
    assert left(5) == 0


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("", "")])
def test_plain_lines_have_no_control_sequence(capsys, monkeypatch, name, value):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if name:
        monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "60")
    with make_display(300, done=0, every=1) as display:
        assert isinstance(display, PlainDisplay)
        display.say(NOTICE)
        display.step(VALIDATED)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert (max(map(len, out.splitlines())) <= 60) is bool(name)
    assert " ".join(out.split()).startswith(f"{NOTICE} step 6/300")


def test_what_is_said_of_files_has_no_raw_control(capsys):
    PlainDisplay(steps=1, every=1).say("left out: a\x1b[2J\nb")
    assert capsys.readouterr().out == "left out: a\\x1b[2J\nb\n"


@pytest.mark.parametrize(("step", "words"), [(3, "after step 3 of 9; everything is saved"), (0, "nothing to save yet")])
def test_a_stopped_run_says_what_is_saved_and_how_to_go_on(step, words):
    settings = SimpleNamespace(run=SimpleNamespace(steps=9))
    prepared = SimpleNamespace(run=SimpleNamespace(folder=Path("runs/two words"), step=step, settings=settings))
    told = closing(prepared, [], Outcome(last=None, stopped_by="SIGTERM"))
    assert words in told["stopped"]
    assert told["go on with"] == "apr-train --resume 'runs/two words'"

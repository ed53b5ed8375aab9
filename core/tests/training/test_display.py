"""What a terminal shows of a run."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from apr_train.run.metrics import Metrics
from apr_train.training.display import LiveDisplay, closing
from apr_train.training.loop import Outcome
from rich.console import Console

LINE = Metrics(step=5, loss=2.5, lr=1e-3, grad_norm=1.25, tokens=640, tokens_per_s=812.0, step_time=0.1, memory=10**9)
BAR = 40
"""Columns of rich's bar."""


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None, _environ={"TERM": "xterm"})


def bars(console):
    """How much of its bar each frame had filled, in columns."""
    return [len(bar) for bar in re.findall("━+", console.file.getvalue())]


def test_the_live_display_starts_where_a_resumed_run_stands():
    console = terminal()
    with LiveDisplay(10, 4, console):
        pass
    assert "step 4/10" in console.file.getvalue()
    assert set(bars(console)) == {BAR * 4 // 10}


def test_the_live_display_moves_and_keeps_validations_as_lines():
    console = terminal()
    with LiveDisplay(10, 0, console) as display:
        display.say("[not markup] said above the bar")
        display.step(LINE)
        display.step(Metrics(step=6, val_loss=2.25, perplexity=9.49))
    shown = console.file.getvalue()
    assert "[not markup] said above the bar" in shown
    assert "step  6/10  val 2.2500 (perplexity 9.49)\n" in shown
    assert bars(console)[-1] == BAR * 6 // 10


@pytest.mark.parametrize(("step", "words"), [(3, "after step 3 of 9; everything is saved"), (0, "nothing to save yet")])
def test_a_stopped_run_says_what_is_saved_and_how_to_go_on(step, words):
    settings = SimpleNamespace(run=SimpleNamespace(steps=9))
    prepared = SimpleNamespace(run=SimpleNamespace(folder=Path("runs/two words"), step=step, settings=settings))
    told = closing(prepared, [], Outcome(last=None, stopped_by="SIGTERM"))
    assert words in told["stopped"]
    assert told["go on with"] == "apr-train --resume 'runs/two words'"

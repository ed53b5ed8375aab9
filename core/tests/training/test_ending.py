"""What ends a run, what is best of it and what is left out, judged by numbers alone."""

import math
import statistics

import pytest
from apr_train.errors import ConfigError, RunError
from apr_train.run.changes import Change
from apr_train.run.course import compared
from apr_train.run.duration import seconds
from apr_train.run.measures import MEASURES, best_line, since_best
from apr_train.run.metrics import Metrics
from apr_train.run.settings import Settings
from apr_train.run.settings_file import with_values
from apr_train.training.averaging import start_remark
from apr_train.training.ending import TimeLimit
from apr_train.training.spikes import ENOUGH, WINDOW, SpikeGuard


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("0", 0), ("2h5s", 7205)]
)
def test_a_length_of_time_is_read(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "m", "1.5h", "30m1h", "-1", "30 m", "1d", "½h", "٣m"])
def test_anything_else_is_no_length_of_time(text):
    with pytest.raises(ConfigError, match=r"not a length of time, expected 90s, 30m or 1h30m"):
        seconds(text)


def lines(*losses, field="val_loss", every=1):
    return [Metrics(step=number * every, **{field: value}) for number, value in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "best", "since"),
    [((3.0,), 0, 0), ((3.0, 2.0, 2.0, 2.5), 1, 2), ((3.0, 3.5, 4.0), 0, 2), ((3.0, None, 2.0, None, 2.0), 2, 1), ((), None, 0)],
)
def test_the_first_of_the_lowest_is_the_best(losses, best, since):
    measured = lines(*losses)
    found = best_line(measured, MEASURES["val_loss"])
    assert (None if found is None else found.step, since_best(measured, MEASURES["val_loss"])) == (best, since)


def test_a_share_is_better_when_it_is_higher():
    measured = lines(0.0, 0.5, 0.25, field="eval_syntax")
    assert best_line(measured, MEASURES["syntax"]).step == 1
    assert best_line(measured, MEASURES["syntax"], among={0, 2}).step == 2


def test_one_step_is_taken_however_little_time_there_is():
    limit = TimeLimit(limit=0.001, clock=iter([0.0, 9.0]).__next__)
    assert limit.check(0.0)
    assert not TimeLimit(limit=None).check(1e9)


def test_a_validation_and_a_step_must_fit_into_what_is_left():
    limit = TimeLimit(limit=10.0, clock=iter([0.0, 4.0, 4.0, 4.0]).__next__)
    limit.validated(3.0)
    assert not limit.check(99.0)  # the first one compiles
    assert not limit.check(3.0)
    assert limit.check(3.1)


def test_a_decay_that_hardly_leaves_the_start_is_remarked():
    assert start_remark(0.99, 1000) is None
    assert start_remark(0.5, 0) is None
    told = start_remark(0.999, 200)
    assert "still 82% the weights that the run starts from" in told
    assert math.isclose(float(told.split("--ema ")[2].split()[0]) ** 200, 0.1, rel_tol=0.02)


def test_a_spike_is_what_lies_so_many_deviations_above_the_window():
    guard = SpikeGuard(6)
    usual = [2.0 + 0.1 * (-1) ** number for number in range(ENOUGH)]
    assert [guard.judge(value, 1.0) for value in usual] == [None] * ENOUGH
    limit = statistics.fmean(usual) + 6 * statistics.pstdev(usual)
    twin = SpikeGuard(6)
    twin.load_state_dict(guard.state_dict())
    assert guard.judge(limit - 1e-9, 1.0) is None
    told = twin.judge(limit + 1e-9, 1.0)
    assert told == f"loss 2.6 is 6.0 standard deviations above the mean of the last {ENOUGH} (2)"


def test_a_norm_is_a_spike_too_and_a_level_that_stays_is_not_skipped_for_ever():
    guard = SpikeGuard(4)
    for number in range(WINDOW):
        guard.judge(2.0, 1.0 + 0.01 * (number % 3))
    assert guard.judge(2.0, 5.0).startswith("gradient norm 5 is")
    skipped = [guard.judge(2.0, 5.0) is not None for _ in range(40)]
    assert skipped[0]
    assert not skipped[-1]


def test_too_few_steps_are_no_window():
    guard = SpikeGuard(1)
    assert all(guard.judge(10.0**number, 1.0) is None for number in range(ENOUGH))


@pytest.mark.parametrize("window", [3, ["a"], [float("nan")], [True]])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(RunError, match="not the window of the guard"):
        SpikeGuard(6).load_state_dict({"loss": window})


def test_scores_of_other_questions_are_not_compared():
    settings = with_values(Settings(), {"keep_best": "fim"})
    measured = [Metrics(step=step, val_loss=1.0, eval_fim_loss=float(step)) for step in range(5)]
    change = Change(step=2, setting="run.eval", before="fim:2", after="fim:9")
    assert [line.step for line in compared(measured, settings, [change])] == [3, 4]
    assert len(compared(measured, with_values(settings, {"keep_best": "val_loss"}), [change])) == 5

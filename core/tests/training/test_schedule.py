"""The learning rate against transformers' schedules."""

import pytest
import torch
from apr_train.run.settings import OptimizerSettings
from apr_train.training.schedule import Schedule
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

STEPS, WARMUP, PEAK = 50, 7, 3e-4


def theirs(make, **arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = make(optimizer, num_warmup_steps=WARMUP, **arguments)
    rates = []
    for _ in range(STEPS):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    return rates


def ours(**settings):
    schedule = Schedule.of(OptimizerSettings(**settings), steps=STEPS, lr=PEAK, warmup_steps=WARMUP)
    return [schedule.rate(step) for step in range(1, STEPS + 1)]


def test_cosine_equals_transformers():
    expected = theirs(get_cosine_with_min_lr_schedule_with_warmup, num_training_steps=STEPS, min_lr_rate=0.1)
    assert ours(schedule="cosine") == pytest.approx(expected, rel=1e-12)


def test_linear_to_zero_equals_transformers():
    expected = theirs(get_linear_schedule_with_warmup, num_training_steps=STEPS)
    assert ours(schedule="linear", min_lr_ratio=0.0) == pytest.approx(expected, rel=1e-12)


def test_constant_equals_transformers():
    assert ours(schedule="constant") == pytest.approx(theirs(get_constant_schedule_with_warmup), rel=1e-12)


def test_wsd_equals_transformers():
    expected = theirs(get_wsd_schedule, num_decay_steps=10, num_training_steps=STEPS, decay_type="linear")
    assert ours(schedule="wsd", decay_ratio=0.2, min_lr_ratio=0.0) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_wsd_falls_linearly_to_its_floor():
    rates = ours(schedule="wsd", decay_ratio=0.2)
    assert rates[WARMUP:40] == [PEAK] * 33
    assert rates[40:] == pytest.approx([PEAK * (1 - 0.09 * fallen) for fallen in range(1, 11)], rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_last_step_has_the_floor_and_no_step_has_zero(schedule):
    rates = ours(schedule=schedule)
    assert rates[-1] == pytest.approx(0.1 * PEAK)
    assert min(rates) > 0
    assert max(rates) == pytest.approx(PEAK)


def test_warm_up_longer_than_the_run_never_reaches_the_peak():
    schedule = Schedule.of(OptimizerSettings(), steps=3, lr=1.0, warmup_steps=10)
    assert [schedule.rate(step) for step in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.3])


def test_a_run_without_warm_up_starts_near_the_peak():
    settings = OptimizerSettings(schedule="linear", min_lr_ratio=0.0)
    assert Schedule.of(settings, steps=4, lr=1.0, warmup_steps=0).rate(1) == pytest.approx(0.75)

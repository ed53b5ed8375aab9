"""What is drawn: thinned, smoothed, on axes with round numbers."""

import json

import numpy as np
import pytest
from apr_train.artifact.report.curves import panels, smooth, step_labels, thinned, tick_labels, ticks
from apr_train.errors import RunError
from apr_train.run.record import read_records
from hypothesis import assume, given
from hypothesis import strategies as st


def test_thinning_keeps_ends_extremes_and_order():
    values = np.random.default_rng(0).standard_normal(50_000)
    values[31_234], values[777] = 40, -40
    points = list(enumerate(values.tolist()))
    kept = thinned(points, 1000)
    assert len(kept) <= 1000
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {(31_234, 40.0), (777, -40.0)} <= set(kept)
    assert kept == sorted(kept)


def test_smoothing_leaves_a_line_where_it_is_and_calms_noise():
    line = [(step, 3.0 - 0.001 * step) for step in range(1000)]
    inner = slice(0, 980)
    np.testing.assert_allclose([v for _, v in smooth(line)[inner]], [v for _, v in line[inner]], rtol=1e-12)
    noise = list(enumerate(np.random.default_rng(0).standard_normal(2000).tolist()))
    assert np.std([value for _, value in smooth(noise)]) < 0.3


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_inside_and_are_evenly_spaced(low, span):
    assume(span > 1e-8 * abs(low))  # nearer together, float64 itself has no evenly spaced numbers to the test's precision
    found = ticks(low, low + span)
    gaps = np.diff(found)
    assert 2 <= len(found) <= 14
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value in found)
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-3)


def test_ticks_of_a_logarithmic_axis_are_decades():
    np.testing.assert_allclose(ticks(0.02, 5000, log=True), [0.1, 1, 10, 100, 1000])


def test_every_point_lies_inside_its_panel(make_run_folder):
    records = read_records([make_run_folder("a"), make_run_folder("b", steps=90, seed=1, lr=0.1)])
    found = panels(records)
    assert [panel.quantity.name for panel in found] == ["loss", "val_loss", "lr", "grad_norm", "tokens_per_s"]
    for panel in found:
        for item in panel.series:
            for step, value in (*item.points, *item.smoothed):
                assert 0 <= panel.x(step) <= 1
                assert 0 <= panel.y(value) <= 1


def test_a_run_of_no_step_has_one_panel_with_one_point(make_run_folder):
    (panel,) = panels(read_records([make_run_folder("a", steps=0)]))
    assert panel.quantity.name == "val_loss"
    (item,) = panel.series
    assert (panel.x(0), 0 < panel.y(item.points[0][1]) < 1) == (0.5, True)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "1" * 5000])
def test_a_line_whose_values_are_no_numbers_is_refused_by_its_own(make_run_folder, value):
    folder = make_run_folder("a", steps=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 6, "loss": {value}}}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 7 is not JSON that can be read"):
        read_records([folder])


def axis_of(make_run_folder, losses):
    """The loss's panel and the labels of its axis."""
    folder = make_run_folder("a", steps=0)
    lines = [json.dumps({"step": step, "loss": loss, "lr": 1e-3}) for step, loss in enumerate(losses, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    panel = next(panel for panel in panels(read_records([folder])) if panel.quantity.name == "loss")
    return panel, tick_labels(ticks(*panel.values, log=panel.log), log=panel.log)


def read_label(text):
    return float(text.replace(",", ""))


@pytest.mark.parametrize(
    ("losses", "labels"),
    [
        ([2.2035, 2.2037], ["2.20350", "2.20355", "2.20360", "2.20365", "2.20370"]),
        ([2.2035, 2.2035 + 1e-9], ["2.10", "2.15", "2.20", "2.25", "2.30"]),
        ([2.0, 2.0], ["1.90", "1.95", "2.00", "2.05", "2.10"]),
        ([2.0], ["1.90", "1.95", "2.00", "2.05", "2.10"]),
        ([0.0, 0.0], ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ([1e-7, 3e-7], ["1.0e-7", "1.5e-7", "2.0e-7", "2.5e-7", "3.0e-7"]),
        ([1e6, 1.0005e6], ["1,000,000", "1,000,100", "1,000,200", "1,000,300", "1,000,400", "1,000,500"]),
        ([1e6, 3e6], ["1,000,000", "1,500,000", "2,000,000", "2,500,000", "3,000,000"]),
        ([1e12, 3e12], ["1.0e12", "1.5e12", "2.0e12", "2.5e12", "3.0e12"]),
    ],
    ids=str,
)
def test_an_axis_has_round_labels_that_differ(make_run_folder, losses, labels):
    assert axis_of(make_run_folder, losses)[1] == labels


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_no_two_labels_are_alike_and_each_says_where_it_stands(low, span):
    assume(span > 1e-5 * abs(low))  # a panel is never narrower
    found = ticks(low, low + span)
    labels = tick_labels(found)
    assert len(set(labels)) == len(labels) == len(found)
    step = found[1] - found[0]
    assert all(abs(read_label(label) - value) < 0.01 * step for label, value in zip(labels, found, strict=True))
    assert all(len(label) < 20 for label in labels)


@given(st.floats(1e-9, 1e9), st.floats(51, 1e12))
def test_no_two_labels_of_a_logarithmic_axis_are_alike(low, ratio):
    labels = tick_labels(ticks(low, low * ratio, log=True), log=True)
    assert len(set(labels)) == len(labels) > 0


@pytest.mark.parametrize(
    ("last", "labels"),
    [
        (80, ["0", "20", "40", "60", "80"]),
        (6000, ["0", "1k", "2k", "3k", "4k", "5k", "6k"]),
        (25_000, ["0", "5k", "10k", "15k", "20k", "25k"]),
        (2_000_000, ["0", "0.5M", "1M", "1.5M", "2M"]),
    ],
)
def test_labels_of_steps_are_short(last, labels):
    assert step_labels(ticks(0, last)) == labels


@given(st.integers(0, 10**7), st.integers(1, 10**7))
def test_labels_of_steps_say_where_they_stand(first, span):
    found = [step for step in ticks(first, first + span) if step == int(step)]
    units = {"k": 1e3, "M": 1e6}
    for label, step in zip(step_labels(found), found, strict=True):
        assert round(read_label(label.rstrip("kM")) * units.get(label[-1], 1)) == step
        assert len(label) <= len("10,000,000")


def test_a_panel_is_as_long_as_the_runs_that_are_in_it(make_run_folder):
    short, long = make_run_folder("a", steps=20), make_run_folder("b", steps=200)
    with (short / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "eval_syntax": 0.5}\n')
    found = {panel.quantity.name: panel.steps for panel in panels(read_records([short, long]))}
    assert (found["loss"], found["eval_syntax"]) == ((0, 200), (0, 21))

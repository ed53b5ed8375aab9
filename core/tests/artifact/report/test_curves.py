"""What is drawn: thinned, smoothed, on axes with round numbers."""

import math

import numpy as np
from apr_train.artifact.report.curves import panels, smooth, thinned, ticks
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


def test_values_that_are_not_finite_are_not_drawn(make_run_folder):
    folder = make_run_folder("a", steps=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": NaN, "lr": Infinity}\n')
    values = [value for panel in panels(read_records([folder])) for item in panel.series for _, value in item.points]
    assert all(map(math.isfinite, values))

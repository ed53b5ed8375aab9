"""The interval of a share, against published values."""

from fractions import Fraction
from statistics import NormalDist

import pytest
from apr_train.run.intervals import wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_one_of_newcombes_table(successes, trials, low, high):
    """Newcombe 1998, table I, method 3 (score method without continuity correction)."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(81, 263), (15, 148), (1, 29), (10, 50), (1, 2), (49, 50)])
def test_a_bound_is_the_share_from_which_the_counted_one_is_as_far_as_95_percent_go(successes, trials):
    """Wilson's definition: (counted - p)² = z² p (1 - p) / n, in fractions, which round nothing."""
    square = Fraction(NormalDist().inv_cdf(0.975)) ** 2
    low, high = map(Fraction, wilson(successes, trials))
    counted = Fraction(successes, trials)
    assert low < counted < high
    for bound in (low, high):
        assert float((counted - bound) ** 2 * trials / (square * bound * (1 - bound))) == pytest.approx(1, abs=1e-12)


def test_the_interval_that_the_docs_name():
    """docs/evaluate.md: 10 of 50 are between 11 and 33 %."""
    assert [f"{bound:.0%}" for bound in wilson(10, 50)] == ["11%", "33%"]


def test_the_interval_is_symmetric_in_what_is_called_success():
    low, high = wilson(3, 11)
    assert wilson(8, 11) == pytest.approx((1 - high, 1 - low), rel=1e-12)
    assert wilson(20, 20)[1] == 1.0

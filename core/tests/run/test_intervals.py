"""The interval of a share, against published values."""

import pytest
from apr_train.run.intervals import wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_one_of_newcombes_table(successes, trials, low, high):
    """Newcombe 1998, table I, method 3 (score method without continuity correction)."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_is_symmetric_in_what_is_called_success():
    low, high = wilson(3, 11)
    assert wilson(8, 11) == pytest.approx((1 - high, 1 - low), rel=1e-12)
    assert wilson(20, 20)[1] == 1.0

"""Numbers as a person reads them."""

import pytest
from apr_train.run.units import duration, loss, number, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (2.23456, "2.235"), (9010.2, "9,010"), (6e-4, "0.0006"), (1.5e-7, "1.5e-7"), (0.001, "0.001")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_times_sizes_and_losses_are_readable():
    assert [duration(seconds) for seconds in (4.21, 185, 3720)] == ["4.2 s", "3 min 05 s", "1 h 02 min"]
    assert [size(value) for value in (2e6, 1e8, 1.5e9, None)] == ["2.0 MB", "0.1 GB", "1.5 GB", "–"]
    assert loss(2.2) == "2.2000"

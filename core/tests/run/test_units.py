"""Numbers as a person reads them."""

import pytest
from apr_train.errors import ConfigError
from apr_train.run.units import duration, loss, number, parsed_size, size


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [("80GB", 80 * 10**9), ("79.6 GiB", round(79.6 * 2**30)), ("500mb", 500 * 10**6), ("24G", 24 * 10**9), ("1024B", 1024)],
)
def test_an_amount_of_memory_is_read(text, expected):
    assert parsed_size(text, "--memory") == expected


@pytest.mark.parametrize("text", ["", "GB", "lots", "0GB", "-3GB", "80 apples", "80", "1iB", "1e3GB"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(ConfigError, match="no amount of memory"):
        parsed_size(text, "--memory")

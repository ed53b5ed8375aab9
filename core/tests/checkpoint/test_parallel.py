"""Calls made by threads: in order, and none is begun after an error."""

import threading
import time

import pytest
from apr_train.checkpoint.parallel import results


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_calls(threads):
    def call(number):
        time.sleep(0.002 * (number % 3 == 0))
        return number

    assert list(results([lambda number=number: call(number) for number in range(20)], threads)) == list(range(20))


@pytest.mark.parametrize("threads", [1, 3])
def test_after_an_error_nothing_runs_and_nothing_is_begun(threads):
    running, begun = set(), []

    def call(number):
        running.add(number)
        begun.append(number)
        if number == 4:
            running.discard(number)
            raise OSError("call 4")
        time.sleep(0.01)
        running.discard(number)

    with pytest.raises(OSError, match="call 4"):
        list(results([lambda number=number: call(number) for number in range(100)], threads))
    assert not running
    assert len(begun) < 20
    assert threading.active_count() == 1 or not any(thread.name.startswith("read") for thread in threading.enumerate())

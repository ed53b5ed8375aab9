"""Calls made by several threads at once: for reading, which gives up the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def results(calls: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """The results of calls, in the order of the calls; one thread makes them where they are asked for.

    At the first error, and when nobody asks any more, no other call is begun. Those under way are waited for, so that none
    writes into memory that was given up.
    """
    if threads == 1:
        yield from (call() for call in calls)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    try:
        for future in [pool.submit(call) for call in calls]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)

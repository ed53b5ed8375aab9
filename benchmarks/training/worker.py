"""A contender's process: `python -m training.worker NAME SHAPE PRECISION ALLOCATOR`, told what to do on standard input."""

from __future__ import annotations

import json
import resource
import sys
import time

from training.shapes import BATCH, LENGTH
from training.steps import make_step

PLAIN, REUSING = "plain", "reusing"
"""C allocators: as it comes, or with the trainer's setting."""


def work(contender: str, shape: str, precision: str) -> None:
    """Get ready, then time one window for each number that comes in; one line of JSON for each."""
    begin = time.perf_counter()
    step = make_step(contender, shape, precision)
    made = time.perf_counter()
    step()
    step()
    done = time.perf_counter()
    print(json.dumps({"make": made - begin, "first_two": done - made}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = (time.perf_counter() - begin) / int(line)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"tokens_per_s": BATCH * LENGTH / seconds, "peak": peak}), flush=True)


if __name__ == "__main__":
    *asked, allocator = sys.argv[1:]
    if allocator == REUSING:
        from apr_train.model.acceleration import reuse_freed_memory

        reuse_freed_memory()
    work(*asked)

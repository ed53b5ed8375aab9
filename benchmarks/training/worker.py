"""A contender's process: `python -m training.worker NAME SHAPE PRECISION ALLOCATOR SETTING`; what to do comes on stdin."""

from __future__ import annotations

import json
import sys
import time

from apr_train.run.resident import resident_peak

from training.shapes import BATCH, LENGTH
from training.steps import Setting, make_step

PLAIN, REUSING = "plain", "reusing"
"""C allocators: as it comes, or with the trainer's setting."""


def work(contender: str, shape: str, precision: str, setting: Setting) -> None:
    """Get ready, then time one window for each number that comes in; one line of JSON for each."""
    begin, bare = time.perf_counter(), resident_peak()  # torch is imported
    step = make_step(contender, shape, precision, setting)
    made = time.perf_counter()
    step()
    step()
    done = time.perf_counter()
    print(json.dumps({"make": made - begin, "first_two": done - made, "bare": bare}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = (time.perf_counter() - begin) / int(line)
        print(json.dumps({"tokens_per_s": BATCH * LENGTH / seconds, "peak": resident_peak()}), flush=True)


if __name__ == "__main__":
    *asked, allocator, told = sys.argv[1:]
    if allocator == REUSING:
        from apr_train.model.acceleration import reuse_freed_memory

        reuse_freed_memory()
    work(*asked, Setting(**json.loads(told)))

"""The loss at the head: `model.loss.chunked_cross_entropy` against torch's `linear_cross_entropy`, forward and backward.

    python benchmarks/head_loss.py --pairs 5 --threads 1

1024 rows against the vocabularies of SmolLM2 and Qwen2.5, in three precisions. There are three comparisons for each: torch's
chunked operator with chunks as long as ours, under the best of its accumulation policies; the fastest of all of torch's ways,
its chunking methods and its reference path among them; and, compiled on both sides, its reference path (torch.compile leaves
the chunked operator as it is). Ways are chosen at a 32nd of the vocabulary. Under bf16 autocast theirs is tried as it is
(autocast does not reach the chunked operator: it computes in float32) and with hidden and weight cast to bfloat16 by hand.

Every contender is a process of its own that times a step when it is told to, while the other waits; a pair is a step of ours
and one of theirs, in an order that alternates. What counts is the median of the pairs' ratios. With one thread the time is the
processor's, which neighbours on a busy machine disturb least; with more it is the clock's. Memory is what a step takes at
its peak beside hidden and weight (gradients included), measured before the C allocator is told to keep what is freed, as the
trainer tells it. Errors are relative norms against float32 logits made from the same inputs.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn import functional as F
from training.told import processor, ratios, spread

ROWS = 1024
SHAPES = {"SmolLM2-135M": (576, 49_152), "Qwen2.5-0.5B": (896, 151_936)}
PRECISIONS = ("fp32", "bf16 autocast", "bf16 weights")
SCREEN = 32
"""By how much the vocabulary is divided where torch's ways are compared with each other."""
POLICIES = ("accurate", "balanced", "compact")
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs(shape: str, precision: str, *, divide: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states `[rows, hidden]`, weight `[vocabulary, hidden]`, targets `[rows]`: losses as at the start of a run."""
    hidden, vocabulary = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16 weights" else torch.float32
    states = torch.randn(ROWS, hidden, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary // divide, hidden, generator=generator) * 0.02).to(dtype).requires_grad_()
    return states, weight, torch.randint(0, len(weight), (ROWS,), generator=generator)


def ours(*, compiled: bool) -> Loss:
    """The mean over all rows, as a step of one batch asks for it."""
    from apr_train.model.loss import chunked_cross_entropy

    return lambda hidden, weight, targets: chunked_cross_entropy(
        hidden, weight, None, targets, scale=1 / ROWS, compiled=compiled
    )[0]


def theirs(way: dict[str, object], *, compiled: bool) -> Loss:
    """torch's in one of its ways; `allow_retain_graph` is what it takes under torch.compile anyway."""
    chosen = {name: way[name] for name in ("batch_chunk_size", "acc_policy") if name in way}
    options = LinearCrossEntropyOptions(**chosen, chunking_method=None, allow_retain_graph=compiled) if chosen else None

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        if way["cast"]:
            hidden, weight = hidden.bfloat16(), weight.bfloat16()
        return F.linear_cross_entropy(hidden, weight, targets, options=options)

    return torch.compile(loss) if compiled else loss


def chunk_sizes(shape: str) -> list[int]:
    """Rows of a chunk: ours, all, and what torch's chunking methods come to, the longest first."""
    from apr_train.model.loss import _chunk_rows, _even

    hidden, vocabulary = SHAPES[shape]
    methods = [LinearCrossEntropyOptions(chunking_method=name) for name in ("aspect_ratio", "aspect_ratio:2")]
    found = [item._adjust(ROWS, hidden, vocabulary, torch.float32).batch_chunk_size for item in methods]
    return [_even(ROWS, _chunk_rows(ROWS, vocabulary)), ROWS, *found]


def choose(shape: str, precision: str) -> tuple[dict[str, object], dict[str, object]]:
    """Torch's best way with chunks like ours, and its fastest way of all."""
    given, sizes = inputs(shape, precision, divide=SCREEN), chunk_sizes(shape)
    times: list[tuple[float, dict[str, object]]] = []

    def measured(way: dict[str, object]) -> float:
        step = make_step(theirs(way, compiled=False), given, precision)
        times.append((min(seconds(step) for _ in range(2)), way))
        return times[-1][0]

    for cast in (False, True) if precision == "bf16 autocast" else (False,):
        measured({"cast": cast})
        for policy in POLICIES:
            for rows in sizes:
                if measured({"cast": cast, "batch_chunk_size": rows, "acc_policy": policy}) > 2 * min(times, key=_time)[0]:
                    break  # shorter chunks take longer still
    return min((item for item in times if item[1].get("batch_chunk_size") == sizes[0]), key=_time)[1], min(times, key=_time)[1]


def _time(measured: tuple[float, dict[str, object]]) -> float:
    return measured[0]


def named(way: dict[str, object]) -> str:
    """A way in words."""
    how = f"{way['acc_policy']}, {way['batch_chunk_size']} rows" if "acc_policy" in way else "reference path"
    return how + (", cast by hand" if way["cast"] else "")


def make_step(loss: Loss, given: tuple[Tensor, Tensor, Tensor], precision: str) -> Callable[[], Tensor]:
    """Forward and backward of one batch; the gradients of the step before are gone."""
    hidden, weight, targets = given

    def step() -> Tensor:
        hidden.grad = weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16 autocast"):
            value = loss(hidden, weight, targets)
        value.backward()
        return value.detach()

    return step


def seconds(step: Callable[[], Tensor]) -> float:
    """The time of one step: the processor's for one thread, the clock's for more."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    step()
    return clock() - begin


def peak(step: Callable[[], Tensor], given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
    """A step's loss, and the bytes that it takes at its most, hidden and weight not counted; Linux only."""
    given[0].grad = given[1].grad = None
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _status("VmRSS")
    return step(), _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def errors(value: Tensor, given: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Relative errors of a step's loss and of both gradients against float32 logits of the same numbers."""
    hidden, weight, targets = given
    found = {"loss": value, "hidden": hidden.grad, "weight": weight.grad}
    wide = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    true = F.cross_entropy(F.linear(*wide), targets)
    true.backward()
    right = {"loss": true.detach(), "hidden": wide[0].grad, "weight": wide[1].grad}
    return {name: float((found[name].float() - right[name]).norm() / right[name].norm()) for name in found}


def work(shape: str, precision: str, contender: str, way: dict[str, object], compiled: bool) -> None:
    """A contender's process: what a step takes and how exact it is, then the time of one for every line that comes in."""
    from apr_train.model.acceleration import reuse_freed_memory

    given = inputs(shape, precision)
    loss = ours(compiled=compiled) if contender == "ours" else theirs(way, compiled=compiled)
    step = make_step(loss, given, precision)
    step()
    value, most = peak(step, given)
    facts = {"peak": most, "errors": errors(value, given)}
    reuse_freed_memory()
    step()
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print(json.dumps(seconds(step)), flush=True)


class Contender:
    """A contender's process, and what it said when it was ready."""

    def __init__(self, *job: object) -> None:
        command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--worker", json.dumps(job)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = json.loads(self._line())

    def seconds(self) -> float:
        """The time of its next step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with status {self.process.wait()}")
        return line

    def stop(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def contenders(shape: str, precision: str, way: dict[str, object], *, compiled: bool) -> Iterator[list[Contender]]:
    """Ours and theirs, and the end of their processes."""
    with ExitStack() as ending:
        made = []
        for name in ("ours", "theirs"):
            made.append(Contender(shape, precision, name, way, compiled))
            ending.callback(made[-1].stop)
        yield made


def compare(shape: str, precision: str, way: dict[str, object], *, compiled: bool, pairs: int) -> str:
    """One line of the table."""
    times: list[list[float]] = [[], []]
    with contenders(shape, precision, way, compiled=compiled) as pair:
        for number in range(pairs):
            for place in (0, 1) if number % 2 == 0 else (1, 0):
                times[place].append(pair[place].seconds())
        facts = [contender.facts for contender in pair]
    ours, theirs = times
    cells = [
        f"{shape}, {precision}{', compiled' if compiled else ''}",
        named(way),
        spread(ratios(theirs, ours)),
        " / ".join(f"{statistics.median(side):.2f}" for side in times),
        " / ".join(f"{fact['peak'] / 1e9:.2f}" for fact in facts),
        *(" / ".join(f"{fact['errors'][name]:.0e}" for fact in facts) for name in ("loss", "hidden", "weight")),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # torch warns of what it does on purpose
    torch.set_num_threads(args.threads)
    if args.worker:
        work(*json.loads(args.worker))
        return
    print(f"{processor()}; ours / theirs where there are two numbers\n")
    columns = ("shape, precision", "theirs", "time, theirs ÷ ours", "s", "GB", "error: loss", "hidden's gradient", "weight's")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for shape, precision in itertools.product(args.shape or SHAPES, args.precision or PRECISIONS):
        like_ours, fastest = choose(shape, precision)
        lines = [(like_ours, False), (fastest, False), ({"cast": False}, True)]
        for way, compiled in lines if fastest != like_ours else lines[1:]:
            print(compare(shape, precision, way, compiled=compiled, pairs=args.pairs), flush=True)


if __name__ == "__main__":
    main()

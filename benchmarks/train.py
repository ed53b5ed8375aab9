"""Training speed and memory against transformers: same shape, batch and precision, windows in turns, ratios only.

    python benchmarks/train.py --shape smollm2 --precision bf16 --pairs 5 --steps 3

Every contender is a process of its own that trains on random tokens (fused AdamW, clipping at 1.0) and times windows
of `--steps` steps when it is told to; the others wait meanwhile. A pair is one window of ours and one of theirs, in
alternating order; what counts is the median of the pairs' ratios. Theirs is transformers' own model class, the
better of eager and torch.compile, each at its best of three windows alone. Where two of them do not fit into memory,
every window has a fresh process. The matmul floor is the sum of the median times of every GEMM of forward and backward
(input and weight gradients) at its real shape, vocabulary projection included, and nothing else. Exit status 1 when
ours is slower or larger in any of them. Ours runs as the trainer does, with its setting of the C allocator;
`--same-allocator` gives theirs the same one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys

from training.contender import contenders
from training.floor import floor
from training.shapes import PRECISIONS, SHAPES
from training.steps import COMPILED, EAGER, OURS

FITS = 0.85
"""Share of the memory that two contenders may hold together."""


def compare(shape: str, precision: str, *, pairs: int, steps: int, same_allocator: bool) -> dict[str, object]:
    """One shape in one precision: each alone, then pairs of windows against the better of theirs."""
    with contenders(shape, precision, same_allocator=same_allocator) as (ours, eager, compiled):
        alone = {contender.name: contender.window_alone(steps) for contender in (ours, eager, compiled)}
        best = compiled if alone[COMPILED] > alone[EAGER] else eager
        ours.restart = best.restart = ours.peak + best.peak > FITS * _memory()
        ours.windows.clear()
        best.windows.clear()
        ratios = []
        for number in range(pairs):
            first, second = (ours, best) if number % 2 == 0 else (best, ours)
            speeds = {contender.name: contender.window(steps) for contender in (first, second)}
            ratios.append(speeds[OURS] / speeds[best.name])
        return {
            "shape": shape,
            "precision": precision,
            "against": best.name,
            "ratio": statistics.median(ratios),
            "spread": (min(ratios), max(ratios)),
            "ours": ours.speed,
            "theirs": best.speed,
            "floor": floor(shape, precision),
            "ours GB": ours.peak / 1e9,
            "theirs GB": best.peak / 1e9,
            "ours first two steps s": ours.ready["first_two"],
            "theirs first two steps s": best.ready["first_two"],
            "restarted": ours.restart,
        }


def _memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def main() -> int:
    """Read the command line; print one block a shape and precision; 1 if ours is slower or larger in one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--precision", choices=[*PRECISIONS, "all"], default="all")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps in a window")
    parser.add_argument("--same-allocator", action="store_true", help="theirs with the trainer's setting of malloc too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    held = True
    for shape in SHAPES if args.shape == "all" else [args.shape]:
        for precision in PRECISIONS if args.precision == "all" else [args.precision]:
            result = compare(shape, precision, pairs=args.pairs, steps=args.steps, same_allocator=args.same_allocator)
            print(json.dumps(result) if args.json else report(result), flush=True)
            held &= result["ratio"] >= 1 and result["ours GB"] < result["theirs GB"]
    return 0 if held else 1


def report(result: dict[str, object]) -> str:
    """The result in words."""
    low, high = result["spread"]
    of_floor = result["ours"] / result["floor"], result["theirs"] / result["floor"]
    return (
        f"{result['shape']} {result['precision']}: {result['ratio']:.2f} × {result['against']} ({low:.2f}–{high:.2f})\n"
        f"  tokens/s {result['ours']:.0f} against {result['theirs']:.0f}; matmul floor {result['floor']:.0f}: "
        f"{of_floor[0]:.0%} against {of_floor[1]:.0%}\n"
        f"  peak memory {result['ours GB']:.2f} GB against {result['theirs GB']:.2f} GB\n"
        f"  first two steps (compilation) {result['ours first two steps s']:.0f} s "
        f"against {result['theirs first two steps s']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())

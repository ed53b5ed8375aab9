"""Training speed and memory against transformers: same shape, batch and precision, windows in turns, ratios only.

    python benchmarks/train.py --shape smollm2 --precision bf16 --pairs 5 --steps 3

Every contender is a process of its own that trains on random tokens (fused AdamW, clipping at 1.0) and times windows
of `--steps` steps when it is told to; the others wait meanwhile. A pair is one window of ours and one of theirs, in
alternating order; what counts is the median of the pairs' ratios. Theirs is transformers' own model class, the
better of eager and torch.compile, each at its best of three windows alone. Where two of them do not fit into memory,
every window has a fresh process. The matmul floor is the sum of the median times of every product of forward and backward
(input and weight gradients) at its real shape, vocabulary projection and the causal half of attention's included, and
nothing else. Memory is told by the state, too: weights, gradients, moments and a master copy, plus what a process takes
that has torch. Exit status 1 when ours is slower or larger in any of them. Ours runs as the trainer does, with its setting
of the C allocator; `--same-allocator` gives theirs the same one. `--ours` leaves theirs out: for before and after a change.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict

import torch
from training.contender import Contender, contenders
from training.floor import floor
from training.shapes import BATCH, LENGTH, PRECISIONS, SHAPES, state_bytes
from training.steps import COMPILED, EAGER, OURS, Setting

FITS = 0.85
"""Share of the memory that two contenders may hold together."""


def compare(shape: str, precision: str, setting: Setting, *, pairs: int, steps: int, same_allocator: bool) -> dict[str, object]:
    """One shape in one precision: each alone, then pairs of windows against the better of theirs."""
    with contenders(shape, precision, setting, same_allocator=same_allocator) as (ours, eager, compiled):
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
        return _of_ours(ours, shape, precision, setting) | {
            "against": best.name,
            "allocator": "the same" if same_allocator else "theirs as it comes",
            "ratio": statistics.median(ratios),
            "spread": (min(ratios), max(ratios)),
            "theirs": best.speed,
            "theirs GB": best.peak / 1e9,
            "theirs first two steps s": best.ready["first_two"],
            "restarted": ours.restart,
        }


def alone(shape: str, precision: str, setting: Setting, *, windows: int, steps: int) -> dict[str, object]:
    """Ours against the floor."""
    with contenders(shape, precision, setting, same_allocator=False) as (ours, _, _):
        for _ in range(windows):
            ours.window(steps)
        return _of_ours(ours, shape, precision, setting)


def _of_ours(ours: Contender, shape: str, precision: str, setting: Setting) -> dict[str, object]:
    state = state_bytes(shape, precision, bf16_update=setting.bf16_update)
    return {
        "shape": shape,
        "precision": precision,
        "setting": {"batch": BATCH, "length": LENGTH, **asdict(setting)},
        "ours": ours.speed,
        "floor": floor(shape, precision),
        "ours GB": ours.peak / 1e9,
        "state GB": state / 1e9,
        "by state": ours.peak / (state + ours.ready["bare"]),
        "ours first two steps s": ours.ready["first_two"],
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
    parser.add_argument("--ours", action="store_true", help="leave theirs out; --pairs windows")
    parser.add_argument("--clip-norm", type=float, default=1.0, help="of both; 0: ours updates in the backward pass")
    parser.add_argument("--bf16-update", choices=["stochastic", "nearest", "master"], default="stochastic", help="of ours")
    parser.add_argument("--recompute", action="store_true", help="ours with activation checkpointing")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    held = True
    setting = Setting(clip_norm=args.clip_norm, bf16_update=args.bf16_update, recompute=args.recompute, threads=args.threads)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    for shape in SHAPES if args.shape == "all" else [args.shape]:
        for precision in PRECISIONS if args.precision == "all" else [args.precision]:
            if args.ours:
                result = alone(shape, precision, setting, windows=args.pairs, steps=args.steps)
            else:
                how = {"pairs": args.pairs, "steps": args.steps, "same_allocator": args.same_allocator}
                result = compare(shape, precision, setting, **how)
                held &= result["ratio"] >= 1 and result["ours GB"] < result["theirs GB"]
            print(json.dumps(result) if args.json else report(result), flush=True)
    return 0 if held else 1


def report(result: dict[str, object]) -> str:
    """The result in words."""
    told = ", ".join(f"{name} {value}" for name, value in result["setting"].items() if value is not None)
    lines = [
        f"{result['shape']} {result['precision']}: {told}",
        f"  tokens/s {result['ours']:.0f}, {result['ours'] / result['floor']:.0%} of the matmul floor {result['floor']:.0f}",
        f"  peak memory {result['ours GB']:.2f} GB, {result['by state']:.2f} × torch and {result['state GB']:.2f} GB of state",
        f"  first two steps (compilation) {result['ours first two steps s']:.0f} s",
    ]
    if "ratio" in result:
        low, high = result["spread"]
        lines += [
            f"  {result['ratio']:.2f} × {result['against']} ({low:.2f}–{high:.2f}), C allocator: {result['allocator']}",
            f"  theirs: tokens/s {result['theirs']:.0f}, {result['theirs'] / result['floor']:.0%} of the floor; "
            f"{result['theirs GB']:.2f} GB, ours {result['ours GB'] / result['theirs GB']:.2f} of it; "
            f"first two steps {result['theirs first two steps s']:.0f} s",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Where each per cent of a training step goes: its time by what it is spent on, for every shape and precision.

    python benchmarks/step_parts.py --shape smollm2 --precision fp32 --steps 3

A compiled step of ours, as benchmarks/train.py has it, under torch's profiler, each row in a process of its own. The time of
an operation is its own, without what it calls, and belongs to the innermost part that it runs in. Shares of one process: what
else keeps the machine busy moves them little, and the seconds a lot.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from training.shapes import PRECISIONS, SHAPES

PARTS: dict[str, tuple[str, ...]] = {
    "head and loss": ("_FusedLinearCrossEntropy",),
    "optimizer": ("Optimizer.step",),
    "gradient norm, clipping": ("aten::linalg_vector_norm", "aten::_foreach_mul_", "aten::_foreach_norm"),
    "attention's products": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product", "aten::_flash_attention"),
    "projections": ("aten::mm", "aten::addmm", "aten::linear"),
    "norms, RoPE, softmax, activation": ("CompiledFxGraph",),
}
"""Part → what the names of its operations contain; the first that fits an operation, or else one that it runs in."""
REST = "the rest"


def part_of(event: Any) -> str:
    """The part that an event of the profiler belongs to: what a whole part encloses is that part's, whatever it is."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    for part, wanted in PARTS.items():
        if any(any(found in name for found in wanted) for name in names):
            return part
    return REST


def shares(shape: str, precision: str, *, steps: int, threads: int, clip_norm: float) -> dict[str, float]:
    """Part → share of a step, of 1."""
    import torch
    from apr_train.model.acceleration import reuse_freed_memory
    from training.steps import OURS, Setting, make_step

    reuse_freed_memory()
    step = make_step(OURS, shape, precision, Setting(threads=threads, clip_norm=clip_norm))
    for _ in range(2):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            step()
    taken = dict.fromkeys([*PARTS, REST], 0.0)
    for event in profile.events():
        taken[part_of(event)] += event.self_cpu_time_total
    total = sum(taken.values())
    return {part: value / total for part, value in taken.items()}


def features() -> str:
    """What the processor has for matrices."""
    import torch

    kinds = {"AVX-512 bf16": torch.cpu._is_avx512_bf16_supported(), "AMX": torch.cpu._is_amx_tile_supported()}
    told = [kind if has else f"no {kind}" for kind, has in kinds.items()]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *told])


def main() -> None:
    """Read the command line; print a table with a row for each shape and precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--precision", choices=[*PRECISIONS, "all"], default="all")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="of one row, for the process that asks")
    args = parser.parse_args()
    if args.json:
        options = {"steps": args.steps, "threads": args.threads, "clip_norm": args.clip_norm}
        print(json.dumps(shares(args.shape, args.precision, **options)))
        return
    print(f"{features()}; {args.threads} thread(s), {args.steps} steps, clipping at {args.clip_norm:g}")
    print("| shape, precision | " + " | ".join([*PARTS, REST]) + " |\n|" + "---|" * (len(PARTS) + 2))
    for shape in SHAPES if args.shape == "all" else [args.shape]:
        for precision in PRECISIONS if args.precision == "all" else [args.precision]:
            found = _asked(shape, precision, args)
            print(f"| {shape}, {precision} | " + " | ".join(f"{share:.1%}" for share in found.values()) + " |", flush=True)


def _asked(shape: str, precision: str, args: argparse.Namespace) -> dict[str, float]:
    """What a process of its own finds."""
    options = ["--steps", str(args.steps), "--threads", str(args.threads), "--clip-norm", str(args.clip_norm)]
    command = [sys.executable, Path(__file__).name, "--json", "--shape", shape, "--precision", precision, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=Path(__file__).parent)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()

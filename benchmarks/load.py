"""Opening an .apr file into a model, against safetensors' load_file + load_state_dict of the same weights.

Each measurement is a fresh process that loads once with the page cache warm; the sides take turns, so that whatever
else the machine does hits them alike. Only ratios are worth reading.

    python benchmarks/load.py --size-mb 600 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = ("safetensors", "apr", "apr-verified")
LIMITS = {"apr": 1.0, "apr-verified": 1.5}
MEMORY_LIMIT = 1.15
HIDDEN, INTERMEDIATE = 1024, 2816


def shapes(size_mb: int) -> dict[str, tuple[int, ...]]:
    """A decoder's tensors of about so many megabytes in float32."""
    block = {
        "q.weight": (HIDDEN, HIDDEN),
        "k.weight": (HIDDEN // 4, HIDDEN),
        "v.weight": (HIDDEN // 4, HIDDEN),
        "o.weight": (HIDDEN, HIDDEN),
        "gate.weight": (INTERMEDIATE, HIDDEN),
        "up.weight": (INTERMEDIATE, HIDDEN),
        "down.weight": (HIDDEN, INTERMEDIATE),
        "norm1.weight": (HIDDEN,),
        "norm2.weight": (HIDDEN,),
    }
    found: dict[str, tuple[int, ...]] = {"embed.weight": (32768, HIDDEN)}
    layer_bytes = 4 * sum(_count(shape) for shape in block.values())
    for layer in range(max(1, round((size_mb * 1e6 - 4 * _count(found["embed.weight"])) / layer_bytes))):
        found |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    return found


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def prepare(folder: Path, size_mb: int) -> int:
    """Write the same weights in both containers; returns their bytes."""
    import numpy as np
    from apr_train.checkpoint.apr import AprWriter, TensorSpec
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    values = {name: random.standard_normal(shape, np.float32) for name, shape in shapes(size_mb).items()}
    save_file(values, folder / "model.safetensors")
    with AprWriter(
        folder / "model.apr", {"model_type": "bench"}, [TensorSpec(n, "F32", v.shape) for n, v in values.items()]
    ) as out:
        for name, value in values.items():
            out.write(name, value)
    return sum(value.nbytes for value in values.values())


def build(size_mb: int) -> Any:
    """A module with those parameters, on the meta device."""
    import torch
    from torch import nn

    model = nn.Module()
    for name, shape in shapes(size_mb).items():
        owner = model
        *path, leaf = name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, nn.Parameter(torch.empty(shape, device="meta")))
    return model


def measure(side: str, folder: Path, size_mb: int) -> None:
    """One load in this process: seconds, and the growth of peak resident memory, as JSON on stdout."""
    import torch
    from apr_train.checkpoint.apr import open_apr
    from apr_train.family.load_plan import plan_load
    from apr_train.family.name_map import NameMap
    from apr_train.family.name_rules import rename
    from apr_train.model.load import load_weights
    from safetensors.torch import load_file

    model = build(size_mb)
    axes = {str(size): size for shape in shapes(size_mb).values() for size in shape}
    table = NameMap(
        rules=tuple(rename(name, name, *map(str, shape)) for name, shape in shapes(size_mb).items()), sizes=axes, num_layers=1
    )
    path = folder / ("model.safetensors" if side == "safetensors" else "model.apr")
    with path.open("rb") as file:
        while file.read(1 << 22):
            pass
    torch.empty(1 << 20).fill_(1.0)  # the allocator and the thread pool exist on both sides
    before = peak_kb(reset=True)
    start = time.perf_counter()
    if side == "safetensors":
        model.to_empty(device="cpu")
        model.load_state_dict(load_file(path))
    else:
        with open_apr(path, verify=side == "apr-verified") as checkpoint:
            load_weights(model, checkpoint, plan_load(table, checkpoint.header.tensors, where=str(path)))
    seconds = time.perf_counter() - start
    total = float(sum(parameter.detach()[-1].sum() for parameter in model.parameters()))
    print(json.dumps({"seconds": seconds, "bytes": 1024 * (peak_kb() - before), "checksum": total}))


def peak_kb(*, reset: bool = False) -> int:
    """The process's peak resident memory (Linux), set back to the present one before it is read if asked."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def run(side: str, folder: Path, size_mb: int) -> dict[str, float]:
    """Measure one side in a fresh process."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--size-mb", str(size_mb)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def compare(size_mb: int, pairs: int) -> bool:
    """Print the ratios; true when all are within their limits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_bytes = prepare(folder, size_mb)
        results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(pairs):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                results[side].append(run(side, folder, size_mb))
    if len({result["checksum"] for found in results.values() for result in found}) != 1:
        raise SystemExit("the sides did not load the same values")
    print(f"model of {model_bytes / 1e6:.0f} MB, {pairs} interleaved pairs, medians")
    good = True
    for side in SIDES:
        ratio = statistics.median(
            mine["seconds"] / theirs["seconds"] for mine, theirs in zip(results[side], results["safetensors"], strict=True)
        )
        memory = max(result["bytes"] for result in results[side]) / model_bytes
        limit = LIMITS.get(side)
        within = limit is None or (ratio <= limit and memory <= MEMORY_LIMIT)
        good &= within
        verdict = "" if limit is None else f"  limits {limit:.2f} and {MEMORY_LIMIT}: {'ok' if within else 'MISSED'}"
        print(f"{side:13} time {ratio:.2f} of safetensors, peak memory {memory:.2f} of the model{verdict}")
    return good


def main() -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=600)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options.side, options.folder, options.size_mb)
        return 0
    return 0 if compare(options.size_mb, options.pairs) else 1


if __name__ == "__main__":
    sys.exit(main())

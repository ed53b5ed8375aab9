"""Opening an .apr file into a model, against safetensors' load_file + load_state_dict of the same weights, and a plain copy.

Each measurement is a fresh process that loads once with the page cache warm; the sides take turns, so that whatever
else the machine does hits them alike. Only ratios are worth reading. `copy` is the limit: the file's bytes read into as
much fresh memory by all threads, without a look at them; `copy-touched` the same into memory that was written to before.

    python benchmarks/load.py --size-mb 600 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from training.told import spread

SIDES = ("safetensors", "copy", "copy-touched", "apr", "apr-verified")
COMPARED = ("safetensors", "apr", "apr-verified")
"""The sides that put every tensor where it belongs."""
LIMITS = {"apr": 1.0, "apr-verified": 1.25}
"""Of the time of `copy`."""
MEMORY_LIMIT = 1.15
COPIED = 4 << 20
"""Bytes that a thread copies at a time."""
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
    """One load in this process: seconds, page faults, and the growth of peak resident memory, as JSON on stdout."""
    import torch

    model = build(size_mb)
    path = folder / ("model.safetensors" if side == "safetensors" else "model.apr")
    with path.open("rb") as file:
        while file.read(1 << 22):
            pass
    load = prepared(side, model, path, size_mb)
    torch.empty(1 << 20).fill_(1.0)  # the allocator and the thread pool exist on all sides
    torch.nn.Linear(1, 1, device="meta").to_empty(device="cpu")  # the first one imports a third of a second of modules
    back_memory(2 * path.stat().st_size)
    before = peak_kb(reset=True)
    usage, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    load()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    total = float(sum(parameter.detach()[-1].sum() for parameter in model.parameters()))
    found = {
        "seconds": seconds,
        "processor": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
        "faults": after.ru_minflt - usage.ru_minflt,
        "bytes": 1024 * (peak_kb() - before),
        "checksum": total if side in COMPARED else None,
    }
    print(json.dumps(found))


def back_memory(size: int) -> None:
    """Touch so much memory and give it back, so that no side waits for a virtual machine's host to find it."""
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1


def prepared(side: str, model: Any, path: Path, size_mb: int) -> Callable[[], None]:
    """A side's load, with all that it imports."""
    import torch
    from apr_train.checkpoint.apr import open_apr
    from apr_train.family.load_plan import plan_load
    from apr_train.family.name_map import NameMap
    from apr_train.family.name_rules import rename
    from apr_train.model.load import load_weights
    from safetensors.torch import load_file

    axes = {str(size): size for shape in shapes(size_mb).values() for size in shape}
    table = NameMap(
        rules=tuple(rename(name, name, *map(str, shape)) for name, shape in shapes(size_mb).items()), sizes=axes, num_layers=1
    )

    def safetensors() -> None:
        model.to_empty(device="cpu")
        model.load_state_dict(load_file(path))

    def apr() -> None:
        with open_apr(path, verify=side == "apr-verified") as checkpoint:
            load_weights(model, checkpoint, plan_load(table, checkpoint.header.tensors, where=str(path)))

    def copy() -> None:
        if side == "copy":
            model.to_empty(device="cpu")
        copy_bytes(path, [item.detach().view(-1).view(torch.uint8).numpy() for item in model.parameters()])

    if side == "copy-touched":
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.detach().fill_(1.0)
    return {"safetensors": safetensors, "apr": apr, "apr-verified": apr}.get(side, copy)


def copy_bytes(path: Path, arrays: Sequence[Any]) -> None:
    """A file's bytes, one after the other, into arrays of bytes, by as many threads as torch has."""
    import torch

    jobs, position = [], 0
    for array in arrays:
        view = memoryview(array)
        jobs += [(position + start, view[start : start + COPIED]) for start in range(0, len(view), COPIED)]
        position += len(view)
    with path.open("rb") as file, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        counts = pool.map(lambda job: os.preadv(file.fileno(), [job[1]], job[0]), jobs)
        if sum(counts) != position:
            raise SystemExit("the copy is not whole")


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
    if len({result["checksum"] for side in COMPARED for result in results[side]}) != 1:
        raise SystemExit("the sides did not load the same values")
    print(f"model of {model_bytes / 1e6:.0f} MB, {pairs} interleaved pairs, medians (lowest to highest)")
    good = True
    for side in SIDES:
        of_theirs, of_limit = ratios(results, side, "safetensors"), ratios(results, side, "copy")
        memory = max(result["bytes"] for result in results[side]) / model_bytes
        limit = LIMITS.get(side)
        within = limit is None or (statistics.median(of_limit) <= limit and memory <= MEMORY_LIMIT)
        good &= within
        processor, faults = (statistics.median(item[what] for item in results[side]) for what in ("processor", "faults"))
        verdict = "" if limit is None else f"  limits {limit:.2f} of a copy and {MEMORY_LIMIT}: {'ok' if within else 'MISSED'}"
        print(
            f"{side:13} time {spread(of_limit)} of a copy, {spread(of_theirs)} of safetensors, "
            f"{processor:.2f} s of processor, {faults:,.0f} page faults, peak memory {memory:.2f} of the model{verdict}"
        )
    return good


def ratios(results: Mapping[str, Sequence[Mapping[str, float]]], side: str, other: str) -> list[float]:
    """One side's seconds over another's, pair by pair."""
    return [mine["seconds"] / theirs["seconds"] for mine, theirs in zip(results[side], results[other], strict=True)]


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

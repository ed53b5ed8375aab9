"""CPU seconds of `apr-train check` on a 1 GB `.apr` with a Qwen-sized tokenizer inside, page cache warm.

What is bounded: under 1.0 s, and about the same as on a file with almost no data, for the data is not read.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
from apr_train.artifact.metadata import apr_metadata
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.header import AddedToken, TokenizerSpec
from apr_train.family.card import Layout
from apr_train.family.registry import Registry

ENTRIES, MERGES, RUNS, LIMIT = 151_665, 151_387, 5, 1.0
ZEROS = bytes(1 << 22)


def tokenizer() -> TokenizerSpec:
    """As many strings and merges as Qwen2.5 has, of about the same lengths."""
    words = tuple(f"{number:x}Ġtok" for number in range(ENTRIES))
    merges = tuple(f"{number:x} Ġtok" for number in range(MERGES))
    added = tuple(AddedToken(id=number, content=words[number], special=True) for number in range(ENTRIES - 22, ENTRIES))
    return TokenizerSpec(
        vocabulary=words, merges=merges, pre_type="qwen2", added_tokens=added, special_ids={"eos": ENTRIES - 1}, size=ENTRIES
    )


def write(path: Path, **sizes: int) -> Path:
    """A Qwen2 of some sizes, all zeros."""
    family = Registry.discover().family("qwen2")
    config = attrs.evolve(family.build_config(preset="0.5b"), **sizes)
    shapes = family.map_tensor_names(config, Layout()).tensors
    specs = [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]
    with AprWriter(path, apr_metadata(config, family.info, tokenizer=tokenizer()), specs) as writer:
        for spec in specs:
            whole, rest = divmod(spec.nbytes, len(ZEROS))
            writer.write(spec.name, (ZEROS[:size] for size in [len(ZEROS)] * whole + [rest] if size))
    return path


def cpu_seconds(path: Path) -> float:
    """User and system time of one check in a process of its own."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", "from apr_train.cli import main; main()", "check", path], check=True, stdout=subprocess.DEVNULL
    )
    after = os.times()
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)


def main() -> int:
    """Print the medians; fail above the limit."""
    with tempfile.TemporaryDirectory() as folder:
        large = write(Path(folder) / "large.apr")
        small = write(Path(folder) / "small.apr", hidden_size=28, intermediate_size=32, head_dim=2)
        pairs = [(cpu_seconds(large), cpu_seconds(small)) for _ in range(RUNS)]
        big, little = (statistics.median(column) for column in zip(*pairs, strict=True))
        for name, path, seconds in (("large", large, big), ("small", small, little)):
            print(f"check of {path.stat().st_size / 1e6:7.1f} MB ({name}): {seconds:.2f} s CPU, median of {RUNS}")
    print(f"ratio {big / little:.2f}, limit {LIMIT} s")
    return 0 if big < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

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
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

BATCH, LENGTH = 2, 512
SHAPES = {
    "smollm2": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
}
FITS = 0.85
"""Share of the memory that two contenders may hold together."""
OURS, EAGER, COMPILED = "ours", "transformers", "transformers-compiled"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": "-1"}
"""What `reuse_freed_memory` sets, as glibc reads it from the environment."""


def random_tokens() -> torch.Tensor:
    """`[batch, length + 1]`."""
    return torch.randint(0, 49_152, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))


def our_step(shape: str, precision_name: str) -> Callable[[], None]:
    """One step of the package's own loop."""
    from apr_train.attention import load_backend
    from apr_train.config import DecoderConfig
    from apr_train.data.batch import Batch
    from apr_train.nn.build import build_model
    from apr_train.train.acceleration import compile_blocks, reuse_freed_memory
    from apr_train.train.optimizer import make_optimizer
    from apr_train.train.precision import PRECISIONS
    from apr_train.train.settings import OptimizerSettings
    from apr_train.train.step import train_step

    reuse_freed_memory()
    precision = PRECISIONS[precision_name]
    model = build_model(None, DecoderConfig(**SHAPES[shape]), load_backend("sdpa"))
    model.to(precision.weights).to_empty(device="cpu").initialize(torch.Generator().manual_seed(0))
    compile_blocks(model)
    optimizer = make_optimizer(model, OptimizerSettings(lr=1e-4))
    ids = random_tokens()
    batch = Batch(tokens=ids[:, :-1].contiguous(), targets=ids[:, 1:].contiguous(), target_count=BATCH * LENGTH)
    options = {"objective": "causal-lm", "precision": precision, "clip_norm": 1.0, "step": 1, "compiled": True}
    return lambda: train_step(model, optimizer, [batch], **options)


def their_step(shape: str, precision_name: str, *, compiled: bool) -> Callable[[], None]:
    """One step of a plain loop around transformers' model class and its own loss."""
    from contextlib import nullcontext

    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes = dict(SHAPES[shape])
    bias, theta = sizes.pop("attention_bias"), sizes.pop("rope_theta")
    kinds = (Qwen2Config, Qwen2ForCausalLM) if bias else (LlamaConfig, LlamaForCausalLM)
    config = kinds[0](**sizes, rope_parameters={"rope_type": "default", "rope_theta": theta}, use_cache=False)
    config._attn_implementation = "sdpa"
    dtype = torch.bfloat16 if precision_name == "bf16-weights" else torch.float32
    model = kinds[1](config).to(dtype).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = random_tokens()[:, :-1].contiguous()

    def step() -> None:
        context = torch.autocast("cpu", dtype=torch.bfloat16) if precision_name == "bf16" else nullcontext()
        with context:
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_step(contender: str, shape: str, precision: str) -> Callable[[], None]:
    """The contender's step."""
    if contender == OURS:
        return our_step(shape, precision)
    return their_step(shape, precision, compiled=contender == COMPILED)


def work(contender: str, shape: str, precision: str) -> None:
    """A contender's process: get ready, then one window for each number that comes in, one line of JSON for each."""
    begin = time.perf_counter()
    step = make_step(contender, shape, precision)
    made = time.perf_counter()
    step()
    step()
    done = time.perf_counter()
    print(json.dumps({"make": made - begin, "first_two": done - made}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = (time.perf_counter() - begin) / int(line)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"tokens_per_s": BATCH * LENGTH / seconds, "peak": peak}), flush=True)


class Contender:
    """A contender as the bench sees it: started when it is needed, asked for windows."""

    def __init__(self, name: str, shape: str, precision: str, environment: dict[str, str]) -> None:
        self.name, self.restart, self.environment = name, False, os.environ | environment
        self.command = [sys.executable, __file__, "--work", name, "--shape", shape, "--precision", precision]
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, float] = {}
        self.windows: list[dict[str, float]] = []

    def window(self, steps: int) -> float:
        """Tokens per second over `steps` steps."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment
            )
            ready = self._read()
            self.ready = self.ready or ready
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        self.windows.append(self._read())
        if self.restart:
            self.stop()
        return self.windows[-1]["tokens_per_s"]

    def window_alone(self, steps: int) -> float:
        """The best of three in a process that ends afterwards."""
        speed = max(self.window(steps) for _ in range(3))
        self.stop()
        return speed

    def _read(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        """End its process."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    @property
    def speed(self) -> float:
        """Median tokens per second."""
        return statistics.median(window["tokens_per_s"] for window in self.windows)

    @property
    def peak(self) -> float:
        """Largest resident set, GB."""
        return max(window["peak"] for window in self.windows) / 1e9


@contextmanager
def contenders(shape: str, precision: str, *, same_allocator: bool) -> Iterator[list[Contender]]:
    """The contenders, and the end of their processes."""
    theirs = ALLOCATOR if same_allocator else {}
    made = [Contender(OURS, shape, precision, {}), *(Contender(name, shape, precision, theirs) for name in (EAGER, COMPILED))]
    try:
        yield made
    finally:
        for contender in made:
            contender.stop()


def floor(shape: str, precision: str, repeats: int = 5) -> float:
    """Tokens per second if a step were its matrix products and nothing else."""
    size = SHAPES[shape]
    hidden, inner, layers = size["hidden_size"], size["intermediate_size"], size["num_hidden_layers"]
    kv = hidden // size["num_attention_heads"] * size["num_key_value_heads"]
    products = [(hidden, hidden, 2 * layers), (hidden, kv, 2 * layers), (hidden, inner, 2 * layers), (inner, hidden, layers)]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    rows = BATCH * LENGTH
    seconds = 0.0
    for width, out, count in [*products, (hidden, size["vocab_size"], 1)]:
        x, w, y = (torch.randn(*shape_, dtype=dtype) for shape_ in ((rows, width), (out, width), (rows, out)))
        for product in (lambda x=x, w=w: x @ w.T, lambda y=y, w=w: y @ w, lambda x=x, y=y: y.T @ x):
            seconds += count * _median_time(product, repeats)
    return rows / seconds


def _memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _median_time(work_: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work_()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


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
            "ours GB": ours.peak,
            "theirs GB": best.peak,
            "ours first two steps s": ours.ready["first_two"],
            "theirs first two steps s": best.ready["first_two"],
            "restarted": ours.restart,
        }


def main() -> int:
    """Read the command line; print one block a shape and precision; 1 if ours is slower or larger in one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--precision", choices=["fp32", "bf16", "bf16-weights", "all"], default="all")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps in a window")
    parser.add_argument("--same-allocator", action="store_true", help="theirs with the trainer's setting of malloc too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.shape, args.precision)
        return 0
    held = True
    for shape in SHAPES if args.shape == "all" else [args.shape]:
        for precision in ("fp32", "bf16", "bf16-weights") if args.precision == "all" else [args.precision]:
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

"""`eval` as written and compiled against transformers' forward pass with its loss, and the products of a forward pass.

    python benchmarks/evaluate.py --shape smollm2 --pairs 5 --threads 1

2 × 512 random tokens a window, random weights, one process, windows in an order that alternates; what counts is the median of
the pairs' ratios. Ours is `inference.evaluate.measure` of a batch, text's bits and all; theirs is the class's own loss under
`torch.no_grad`. The floor, timed beside every window, is the matrix products of a forward pass at their real shapes: those of
the blocks and the head, and the causal half of attention's own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain

import torch
from decode import seconds
from training.shapes import BATCH, LENGTH, PRECISIONS, SHAPES
from training.steps import random_tokens
from training.told import processor, ratios, spread

Window = Callable[[], object]


def ours(shape: str, precision_name: str) -> dict[str, Window]:
    """Our windows by name."""
    from types import SimpleNamespace

    from apr_train.data.batch import Batch
    from apr_train.data.objectives import OBJECTIVES
    from apr_train.family.decoder_config import DecoderConfig
    from apr_train.inference.evaluate import sums_of
    from apr_train.model.acceleration import compile_blocks, reuse_freed_memory, uncompiled
    from apr_train.model.attention import load_backend
    from apr_train.model.build import build_model
    from apr_train.model.device import PRECISIONS

    reuse_freed_memory()
    precision, cpu = PRECISIONS[precision_name], torch.device("cpu")
    model = build_model(None, DecoderConfig(**SHAPES[shape]), load_backend("sdpa"))
    model.to(precision.weights).to_empty(device=cpu).initialize(torch.Generator().manual_seed(0))
    model.eval().requires_grad_(False)
    compile_blocks(model)
    ids = random_tokens()
    batch = Batch(tokens=ids[:, :-1].contiguous(), targets=ids[:, 1:].contiguous(), target_count=BATCH * LENGTH)
    ready = SimpleNamespace(model=model, precision=precision, device=cpu, objective=OBJECTIVES["causal-lm"])
    sizes = torch.ones(SHAPES[shape]["vocab_size"], dtype=torch.int64)

    def window(*, compiled: bool) -> None:
        with torch.no_grad(), nullcontext() if compiled else uncompiled():
            sums_of(ready, batch, sizes)

    return {"as written": lambda: window(compiled=False), "compiled": lambda: window(compiled=True)}


def theirs(shape: str, precision_name: str) -> Window:
    """transformers' class, its own loss."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes = dict(SHAPES[shape])
    bias, theta = sizes.pop("attention_bias"), sizes.pop("rope_theta")
    kinds = (Qwen2Config, Qwen2ForCausalLM) if bias else (LlamaConfig, LlamaForCausalLM)
    config = kinds[0](**sizes, rope_parameters={"rope_type": "default", "rope_theta": theta}, use_cache=False)
    config._attn_implementation = "sdpa"
    model = kinds[1](config).to(torch.bfloat16 if precision_name == "bf16-weights" else torch.float32).eval()
    ids = random_tokens()[:, :-1].contiguous()

    def window() -> None:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision_name == "bf16"):
            float(model(input_ids=ids, labels=ids).loss)

    return window


def floor(shape: str, precision_name: str) -> Window:
    """The products of one layer, and the head's; their times are to be multiplied: `layers` of the one, one of the other."""
    size = SHAPES[shape]
    hidden, inner, heads = size["hidden_size"], size["intermediate_size"], size["num_attention_heads"]
    dim = hidden // heads
    kv = dim * size["num_key_value_heads"]
    dtype = torch.float32 if precision_name == "fp32" else torch.bfloat16
    pairs = [(hidden, hidden)] * 2 + [(hidden, kv)] * 2 + [(hidden, inner)] * 2 + [(inner, hidden)]
    rows = BATCH * LENGTH
    x = {width: torch.randn(rows, width, dtype=dtype) for width in (hidden, inner)}
    matrices = [[torch.randn(out, width, dtype=dtype) for width, out in pairs] for _ in range(size["num_hidden_layers"])]
    head = torch.randn(size["vocab_size"], hidden, dtype=dtype)
    q, k = (torch.randn(BATCH * heads, LENGTH, dim, dtype=dtype) for _ in range(2))
    half = k[:, : LENGTH // 2]

    def window() -> None:
        for weight in chain.from_iterable(matrices):
            x[weight.shape[1]] @ weight.T
        for _ in matrices:
            scores = q @ half.transpose(1, 2)
            scores @ half
        for part in x[hidden].split(rows // 2):
            part @ head.T

    return window


def compare(shape: str, precision: str, *, pairs: int) -> list[str]:
    """A line for each of our ways."""
    windows = ours(shape, precision) | {"theirs": theirs(shape, precision), "floor": floor(shape, precision)}
    for window in windows.values():
        window()  # compilation, and memory touched for the first time
    times: dict[str, list[float]] = {name: [] for name in windows}
    for number in range(pairs):
        for name in list(windows) if number % 2 == 0 else reversed(list(windows)):
            times[name].append(seconds(windows[name]))
    lines = []
    for name in ("as written", "compiled"):
        cells = [f"{shape}, {precision}", name, *(spread(ratios(times[other], times[name])) for other in ("theirs", "floor"))]
        cells.append(f"{BATCH * LENGTH / statistics.median(times[name]):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{processor()}\n\n| shape, precision | ours | tokens/s ÷ theirs | of the floor | tokens/s |\n|---|---|---|---|---|")
    for shape in args.shape or SHAPES:
        for precision in args.precision or PRECISIONS:
            print("\n".join(compare(shape, precision, pairs=args.pairs)), flush=True)


if __name__ == "__main__":
    main()

"""Attention backends against torch's own kernel, forward and backward, as ratios of interleaved medians.

The window is a quarter of the length.

python benchmarks/attention.py --dtype bfloat16 --length 512 --heads 9 --kv-heads 3
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from apr_train.model.attention import Causal
from apr_train.model.attention.eager import EagerAttention
from apr_train.model.attention.sdpa import SdpaAttention
from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What a decoder does without grouped-query support: k and v repeated in memory."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)


def candidates(length: int) -> dict[str, Attend]:
    """Name → attention; the first is what the ratios are to."""
    window = Causal(window=max(1, length // 4))
    kernel, blocked, eager = SdpaAttention(blocked=False), SdpaAttention(blocked=True), EagerAttention()
    plain: dict[str, Attend] = {
        "torch kernel": lambda q, k, v: kernel(q, k, v, Causal()),
        "torch kernel, k and v repeated": repeated,
        "blocked": lambda q, k, v: blocked(q, k, v, Causal()),
        "blocked, window": lambda q, k, v: blocked(q, k, v, window),
        "blocked, soft cap": lambda q, k, v: blocked(q, k, v, Causal(), softcap=50.0),
        "eager": lambda q, k, v: eager(q, k, v, Causal()),
        "eager, soft cap": lambda q, k, v: eager(q, k, v, Causal(), softcap=50.0),
    }
    compiled = {f"{name}, compiled": torch.compile(attend) for name, attend in plain.items() if not name.startswith("torch")}
    return plain | compiled


def seconds(attend: Attend, tensors: list[Tensor], upstream: Tensor) -> tuple[float, float]:
    """Time one forward and one backward."""
    start = time.perf_counter()
    out = attend(*tensors)
    middle = time.perf_counter()
    torch.autograd.grad(out, tensors, upstream)
    return middle - start, time.perf_counter() - middle


@click.command()
@click.option("--dtype", default="bfloat16", type=click.Choice(["bfloat16", "float32"]))
@click.option("--batch", default=2)
@click.option("--length", default=512)
@click.option("--heads", default=9)
@click.option("--kv-heads", default=3)
@click.option("--head-dim", default=64)
@click.option("--rounds", default=15)
def main(dtype: str, batch: int, length: int, heads: int, kv_heads: int, head_dim: int, rounds: int) -> None:
    """Print each candidate's time as a part of torch's own kernel's."""
    shapes = [(batch, length, count, head_dim) for count in (heads, kv_heads, kv_heads, heads)]
    *tensors, upstream = (torch.randn(shape, dtype=getattr(torch, dtype)) for shape in shapes)
    for tensor in tensors:
        tensor.requires_grad_()
    attends = candidates(length)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in attends}
    for _ in range(rounds + 3):
        for name, attend in attends.items():
            times[name].append(seconds(attend, tensors, upstream))
    medians = {name: [statistics.median(part) for part in zip(*pairs[3:], strict=True)] for name, pairs in times.items()}
    base = next(iter(medians.values()))
    for name, (forward, backward) in medians.items():
        total = (forward + backward) / sum(base)
        click.echo(f"{name:32} forward {forward / base[0]:5.2f}  backward {backward / base[1]:5.2f}  both {total:5.2f}")


if __name__ == "__main__":
    main()

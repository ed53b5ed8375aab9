"""What a step's matrix products take by themselves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from training.shapes import BATCH, LENGTH, SHAPES


def floor(shape: str, precision: str, repeats: int = 5) -> float:
    """Tokens per second if a step were its matrix products and nothing else."""
    size = SHAPES[shape]
    hidden, inner, layers = size["hidden_size"], size["intermediate_size"], size["num_hidden_layers"]
    kv = hidden // size["num_attention_heads"] * size["num_key_value_heads"]
    products = [(hidden, hidden, 2 * layers), (hidden, kv, 2 * layers), (hidden, inner, 2 * layers), (inner, hidden, layers)]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    rows = BATCH * LENGTH
    seconds = layers * _attention(size["num_attention_heads"], hidden // size["num_attention_heads"], dtype, repeats)
    for width, out, count in [*products, (hidden, size["vocab_size"], 1)]:
        x, w, y = (torch.randn(*shape_, dtype=dtype) for shape_ in ((rows, width), (out, width), (rows, out)))
        for product in (lambda x=x, w=w: x @ w.T, lambda y=y, w=w: y @ w, lambda x=x, y=y: y.T @ x):
            seconds += count * _median_time(product, repeats)
    return rows / seconds


def _attention(heads: int, width: int, dtype: torch.dtype, repeats: int) -> float:
    """Seconds of one layer's products of queries, keys and values, forward and backward: half of the whole squares."""
    inner, outer = (torch.randn(BATCH * heads, LENGTH, columns, dtype=dtype) for columns in (width, LENGTH))
    scores = _median_time(lambda: inner @ inner.mT, repeats)  # of q and k, and of the output's gradient and v
    sums = _median_time(lambda: outer @ inner, repeats)  # of the weights and v; of the scores' gradient and k
    turned = _median_time(lambda: outer.mT @ inner, repeats)  # of the same two, turned, for the gradients of v and k
    return (2 * scores + 2 * sums + 2 * turned) / 2


def _median_time(product: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        product()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])

"""A step of AdamW on bfloat16 weights: rounded to nearest (torch's fused kernel), stochastically, and with a master copy.

    python benchmarks/bf16_update.py --rounds 7

The matrices of a SmolLM2 block, 20 times, on one thread. The ways take turns, a step each a round; the time is the
processor's, which neighbours on a busy machine disturb least. What counts is the median of the rounds' ratios to the first.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from apr_train.model.acceleration import reuse_freed_memory
from apr_train.run.settings import OptimizerSettings
from apr_train.training.optimizer.make import Optimizers, make_optimizer
from torch import nn

SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
BLOCKS = 20
WAYS = ("nearest", "stochastic", "master")


def optimizer_of(way: str) -> Optimizers:
    """An optimizer with gradients in place."""
    model = nn.ParameterList([nn.Parameter(torch.randn(shape).bfloat16()) for _ in range(BLOCKS) for shape in SHAPES])
    for parameter in model:
        parameter.grad = torch.randn_like(parameter)
    return make_optimizer(model, OptimizerSettings(bf16_update=way), lr=5e-5)


def seconds(optimizer: Optimizers) -> float:
    """Processor time of a step."""
    begin = time.process_time()
    optimizer.step()
    return time.process_time() - begin


def main() -> None:
    """Measure, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    reuse_freed_memory()
    optimizers = {way: optimizer_of(way) for way in WAYS}
    for optimizer in optimizers.values():
        optimizer.step()
    taken = [{way: seconds(optimizer) for way, optimizer in optimizers.items()} for _ in range(rounds)]
    count = BLOCKS * sum(rows * columns for rows, columns in SHAPES)
    for way in WAYS:
        ratios = sorted(times[way] / times[WAYS[0]] for times in taken)
        each = 1e9 * statistics.median(times[way] for times in taken) / count
        print(f"{way:10} {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}), {each:.2f} ns a parameter")


if __name__ == "__main__":
    main()

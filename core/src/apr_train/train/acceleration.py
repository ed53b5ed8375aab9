"""What changes how fast or how large a run is, and nothing of what it computes."""

from __future__ import annotations

import functools
import os
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from apr_train.nn.protocol import LanguageModel


def recompute_blocks(model: nn.Module) -> None:
    """Keep only each block's input for the backward pass and compute the rest again (Chen et al. 2016)."""
    for block in cast(LanguageModel, model).blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: nn.Module) -> None:
    """Compile each block in place; all have one graph, so the first one's compilation serves the others."""
    for block in cast(LanguageModel, model).blocks:
        block.compile()


def make_deterministic() -> None:
    """Ask torch for deterministic algorithms; what has none raises an error instead of giving other numbers each time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its handle is made
    torch.use_deterministic_algorithms(True)

"""What changes how fast or how large a run is, and nothing of what it computes."""

from __future__ import annotations

import os
from typing import cast

import torch
from torch import nn

from apr_train.nn.protocol import LanguageModel


def compile_blocks(model: nn.Module) -> None:
    """Compile each block's forward; all have one graph, so the first one's compilation serves the others.

    The forward and not the call, so that `recompute_activations` afterwards runs the compiled code: dynamo would leave a
    block alone in which it meets the checkpoint first.
    """
    for block in cast(LanguageModel, model).blocks:
        block.forward = torch.compile(block.forward)


def make_deterministic() -> None:
    """Ask torch for deterministic algorithms; what has none raises an error instead of giving other numbers each time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its handle is made
    torch.use_deterministic_algorithms(True)

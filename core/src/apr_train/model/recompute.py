"""Activation checkpointing: keep each block's input only, and compute the rest again in the backward pass."""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from apr_train.model.protocol import LanguageModel


def recompute_activations(model: LanguageModel) -> None:
    """Checkpoint every block of `model` (Chen et al. 2016); parameter names stay as they are.

    Works on a family's own module too. Dropout draws the same numbers again. Compile the blocks' `forward` first, where
    wanted: `block.compile()`, before or after, finds the checkpoint before any tensor work and compiles nothing.
    """
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)

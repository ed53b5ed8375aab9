"""What changes how fast or how large a run is, and nothing of what it learns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx, nn

from apr_train.nn.protocol import LanguageModel


def compile_blocks(model: nn.Module) -> None:
    """Compile each block in place; all have one graph, so the first one's compilation serves the others."""
    for block in cast(LanguageModel, model).blocks:
        block.forward = torch.compile(block.forward, backend=_lean_inductor, dynamic=False)


def _lean_inductor(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """torch.compile's own backend, but what a backward pass computes again on purpose is not merged with the forward's.

    Merged, attention's scores would be kept for every layer: memory that grows with the square of the length, for no
    measurable time.
    """
    from torch._functorch import config  # the only way to say this; a torch without the setting would raise here
    from torch._inductor.compile_fx import compile_fx

    with config.patch(cse=False):
        return compile_fx(graph, list(inputs))


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run blocks as they are written: for rows of other shapes, which would each want a compilation."""
    with torch.compiler.set_stance("force_eager"):
        yield


def make_deterministic() -> None:
    """Ask torch for deterministic algorithms; what has none raises an error instead of giving other numbers each time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its handle is made
    torch.use_deterministic_algorithms(True)

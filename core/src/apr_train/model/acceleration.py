"""What changes how fast or how large a run is, and nothing of what it learns."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import fx, nn
from torch._compile import _disable_dynamo

from apr_train.errors import text_of
from apr_train.model.protocol import LanguageModel

P = ParamSpec("P")
T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_TUNED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def compile_blocks(model: nn.Module) -> None:
    """Compile each block in place; all have one graph, so the first one's compilation serves the others."""
    for block in cast(LanguageModel, model).blocks:
        block.forward = torch.compile(block.forward, backend=_lean_inductor, dynamic=False)


def _lean_inductor(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """torch.compile's own backend, told to draw dropout as eager code does, and to compute cheap things again backwards.

    With `fallback_random` a compiled encoder drops what the uncompiled one drops and so learns the same. It keeps the masks
    that the compiler's own generator would draw again: 5 % more at the peak of a CodeBERT of four layers, in 0.93 of the
    time (one thread of a CPU).

    `cse` would merge what attention computes again on purpose with the forward pass's, and so keep the scores of every
    layer: memory that grows with the square of the length. The other setting keeps every pointwise result that the
    backward pass reads as a whole (casts, activations, rotated heads): a third of what is kept. Neither saves
    measurable time.
    """
    from torch._functorch import config as autograd  # the only way to say this; a torch without a setting would raise here
    from torch._inductor import config as inductor
    from torch._inductor.compile_fx import compile_fx

    kept = autograd.patch(cse=False, ban_recompute_materialized_backward=False)
    with kept, inductor.patch(fallback_random=True):
        return compile_fx(graph, list(inputs))


def compiler_fault(device: torch.device) -> str | None:
    """Why torch.compile does not work on this machine, found by compiling a sum; None: it works.

    A compiler may be absent, too old, or without its headers: what is asked for is what matters. Where compiled code of the
    sum lies in torch's cache, it is not compiled again.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        torch.compile(_sum_with_its_mirror, dynamic=False)(torch.zeros(8, device=device))
    except (RuntimeError, OSError) as error:  # torch's own are RuntimeErrors
        cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
        told = f"{type(cause).__name__}: {text_of(cause)}".partition("\n")[0]
        return f"torch.compile does not work here ({told})"
    return None


def _sum_with_its_mirror(values: torch.Tensor) -> torch.Tensor:
    return values + values.flip(0)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run blocks as they are written: for rows of other shapes, which would each want a compilation."""
    if _compiler_is_loaded():
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def never_compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that no compilation may reach into: `torch.compiler.disable` without what that costs at import.

    torch's decorator imports the compiler, which takes as long as torch itself; this one leaves it to whoever compiles.
    """
    disabled = _disable_dynamo(function)  # what torch decorates its own with: it imports the compiler at the first call

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return (disabled if _compiler_is_loaded() else function)(*args, **kwargs)

    return call


def _compiler_is_loaded() -> bool:
    """Whether anything can have been compiled: without `torch._dynamo` nothing is."""
    return "torch._dynamo" in sys.modules


def reuse_freed_memory() -> None:
    """Let the C allocator keep what a step frees, for the next step, instead of giving it back to the system.

    glibc returns large blocks at once and then gets them again as zeroed pages: up to a quarter of a training step on
    a CPU. Blocks below 32 MiB (glibc's limit) come from the heap from here on, and the heap does not shrink; the peak is
    the same. Another C library is left alone, and so is one that the user has tuned (`MALLOC_*`, `GLIBC_TUNABLES`).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _TUNED):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, -1)


def make_deterministic() -> None:
    """Ask torch for deterministic algorithms; what has none raises an error instead of giving other numbers each time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its handle is made
    torch.use_deterministic_algorithms(True)

"""How much memory a run has needed at most, and what is said when there is not enough."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from apr_train.errors import RunError


def peak_memory(device: torch.device) -> int:
    """Bytes: what torch had allocated on CUDA at most, else the process's largest resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def memory_errors(where: str) -> Iterator[None]:
    """Say what to do when torch gets no memory.

    Raises:
        RunError: instead of torch's or Python's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_lack(error):
            raise
        hint = "Start a new run with a smaller --batch-size (and a larger --accumulate for the same step), or with --recompute."
        raise RunError("not enough memory", where=where, found=str(error).partition("\n")[0], hint=hint) from error


def _is_lack(error: Exception) -> bool:
    """A CPU's lack of memory is a plain RuntimeError that only its text tells from others."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)

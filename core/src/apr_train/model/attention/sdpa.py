"""torch's scaled_dot_product_attention: fused kernels, kv heads shared inside the kernel."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from apr_train.model.attention.backend import Request
from apr_train.model.attention.blocked import blocked_attention
from apr_train.model.attention.dense import allowed
from apr_train.model.attention.masks import Bidirectional, Causal, Mask, PreparedMask

BLOCKED_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


class SdpaAttention:
    """Grouped-query attention by `enable_gqa`; masks that are not plain causal become one boolean matrix a batch.

    Compiled causal training on a CPU goes through `blocked_attention`, the same function without the CPU kernel's slow
    backward; uncompiled, the kernel is the faster one.

    torch's CPU kernel shares kv heads by index: it allocates the output and, going backward, gradients with kv heads, and
    no k or v with query heads (a test holds it with the memory profiler). With dropout torch leaves its kernel for plain
    operations that do repeat them; no decoder has dropout.

    Args:
        blocked: True or False takes `blocked_attention` always, where it can run, or never: for comparisons.
    """

    name = "sdpa"

    def __init__(self, *, blocked: bool | None = None) -> None:
        self.blocked = blocked

    def supports(self, request: Request) -> str | None:
        """Everything that torch has a kernel for."""
        if request.device not in ("cpu", "cuda"):
            return f"not tried on device {request.device}"
        return None

    def prepare(self, mask: Mask, query_length: int, key_length: int, device: torch.device) -> Mask:
        """Make the boolean matrix once for all layers, where one is needed."""
        if isinstance(mask, PreparedMask) or _is_plain(mask, query_length, key_length):
            return mask
        return PreparedMask(mask.kind, _matrix(mask, query_length, key_length, device))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, dropout: float = 0.0) -> Tensor:
        """See `AttentionBackend`."""
        visible = _matrix(mask, q.shape[1], k.shape[1], q.device)
        if self._takes_blocks(q, k, mask, dropout):
            return blocked_attention(q, k, v, visible)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=visible,
            dropout_p=dropout,
            is_causal=visible is None and isinstance(mask, Causal) and q.shape[1] > 1,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return out.transpose(1, 2)

    def _takes_blocks(self, q: Tensor, k: Tensor, mask: Mask, dropout: float) -> bool:
        """Training, on a CPU, with a causal mask over the whole of equally many queries and keys."""
        wanted = torch.compiler.is_compiling() if self.blocked is None else self.blocked
        training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
        causal = mask.kind == "documents" or (isinstance(mask, Causal) and mask.offset == 0)
        fits = q.device.type == "cpu" and q.dtype in BLOCKED_DTYPES and q.shape[1] == k.shape[1] and dropout == 0.0
        return wanted and training and causal and fits


def _is_plain(mask: Mask, query_length: int, key_length: int) -> bool:
    """Whether the kernel knows this mask by itself: all keys, or causal from the first key (or one last query)."""
    if isinstance(mask, Bidirectional):
        return mask.keep is None
    if isinstance(mask, Causal):
        return mask.offset == 0 or (query_length == 1 and mask.offset == key_length - 1)
    return False


def _matrix(mask: Mask, query_length: int, key_length: int, device: torch.device) -> Tensor | None:
    """Which keys each query sees, `[batch or 1, 1, query length, key length]`; None when the kernel knows."""
    if isinstance(mask, PreparedMask):
        return cast(Tensor, mask.value)
    return None if _is_plain(mask, query_length, key_length) else allowed(mask, query_length, key_length, device)

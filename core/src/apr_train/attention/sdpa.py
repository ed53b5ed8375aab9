"""torch's scaled_dot_product_attention: fused kernels, kv heads shared inside the kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from apr_train.attention.backend import Request
from apr_train.attention.blocked import blocked_attention
from apr_train.attention.dense import allowed
from apr_train.attention.masks import Bidirectional, Causal, Mask, Prepared

BLOCKED_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


class SdpaAttention:
    """Grouped-query attention by `enable_gqa`; masks that are not plain causal become one boolean matrix a batch.

    Compiled causal training on a CPU goes through `blocked_attention`, the same function without the CPU kernel's slow
    backward; uncompiled, the kernel is the faster one.

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
        if isinstance(mask, Prepared) or _is_plain(mask, query_length, key_length):
            return mask
        return Prepared(mask.kind, allowed(mask, query_length, key_length, device))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, dropout: float = 0.0) -> Tensor:
        """See `AttentionBackend`."""
        mask = self.prepare(mask, q.shape[1], k.shape[1], q.device)
        if self._takes_blocks(q, k, mask, dropout):
            return blocked_attention(q, k, v, mask.value if isinstance(mask, Prepared) else None)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask.value if isinstance(mask, Prepared) else None,
            dropout_p=dropout,
            is_causal=isinstance(mask, Causal) and q.shape[1] > 1,
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

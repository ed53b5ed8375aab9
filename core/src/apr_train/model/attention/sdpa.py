"""torch's scaled_dot_product_attention: fused kernels, kv heads shared inside the kernel."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from apr_train.errors import AttentionError
from apr_train.model.attention.backend import Request
from apr_train.model.attention.blocked import blocked_attention
from apr_train.model.attention.dense import allowed
from apr_train.model.attention.masks import Bidirectional, Causal, Mask, PreparedMask, hiding_window
from apr_train.model.tensors import TORCH_DTYPES

BLOCKED_DTYPES = {name: TORCH_DTYPES[name] for name in ("BF16", "F32", "F64")}
"""The dtypes that `blocked_attention` takes."""


class SdpaAttention:
    """Grouped-query attention by `enable_gqa`; masks that are not plain causal become one boolean matrix a batch.

    Compiled causal training on a CPU goes through `blocked_attention`, the same function without the CPU kernel's slow
    backward, and of a sliding window computes the band alone; uncompiled, the kernel is the faster one. Soft caps, which
    no kernel of torch's has, are always `blocked_attention`'s: causal ones on a CPU, with gradients or without.

    torch's CPU kernel shares kv heads by index: it allocates the output and, going backward, gradients with kv heads, and
    no k or v with query heads (a test holds it with the memory profiler). With dropout torch leaves its kernel for plain
    operations that do repeat them; no decoder has dropout.

    Args:
        blocked: True or False takes `blocked_attention` always, where it can run, or never: for comparisons.
    """

    name = "sdpa"
    serves_places = True

    def __init__(self, *, blocked: bool | None = None) -> None:
        self.blocked = blocked

    def supports(self, request: Request) -> str | None:
        """Everything that torch has a kernel for, and soft caps where `blocked_attention` can run."""
        if request.device not in ("cpu", "cuda"):
            return f"not tried on device {request.device}"
        if request.softcap is None or _blocks_serve(request):
            return None
        where = f"causal attention on cpu in {', '.join(BLOCKED_DTYPES)} without dropout"
        return f"it has no soft cap (attn_logit_softcapping {request.softcap}) but for {where}"

    def prepare(self, mask: Mask, query_length: int, key_length: int, device: torch.device) -> Mask:
        """Make the boolean matrix once for all layers, where one is needed."""
        if isinstance(mask, PreparedMask) or _is_plain(mask, query_length, key_length):
            return mask
        matrix = _matrix(mask, query_length, key_length, device)
        return PreparedMask(mask.kind, matrix, _offset(mask), hiding_window(mask, query_length))

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        *,
        dropout: float = 0.0,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """See `AttentionBackend`.

        Raises:
            AttentionError: for a soft cap where `supports` says that there is none.
        """
        visible = _matrix(mask, q.shape[1], k.shape[1], q.device)
        window = hiding_window(mask, q.shape[1])
        if self._takes_blocks(q, k, mask, dropout, softcap):
            if mask.kind == "causal" and window is not None:
                visible = None  # offset and window say all of it, and cost less than to read a matrix
            return blocked_attention(q, k, v, visible, offset=_offset(mask), window=window, scale=scale, softcap=softcap)
        if softcap is not None:
            raise AttentionError("torch's kernels have no soft cap", where="attention", found=f"{softcap} on {q.device.type}")
        if visible is None and window is not None:  # the last query alone: its window is the last keys
            k, v = k[:, -window:], v[:, -window:]
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=visible,
            dropout_p=dropout,
            is_causal=visible is None and isinstance(mask, Causal) and q.shape[1] > 1,
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return out.transpose(1, 2)

    def _takes_blocks(self, q: Tensor, k: Tensor, mask: Mask, dropout: float, softcap: float | None) -> bool:
        """On a CPU: for a soft cap; and in training, with a causal mask over the whole of equally many queries and keys."""
        wanted = torch.compiler.is_compiling() if self.blocked is None else self.blocked
        training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
        square = _offset(mask) == 0 and q.shape[1] == k.shape[1]
        fits = q.device.type == "cpu" and q.dtype in BLOCKED_DTYPES.values() and dropout == 0.0
        return fits and mask.kind != "bidirectional" and (softcap is not None or (wanted and training and square))


def _blocks_serve(request: Request) -> bool:
    """Whether `blocked_attention` can run all of this."""
    plain = request.mask != "bidirectional" and request.dropout == 0.0
    return request.device == "cpu" and request.dtype in BLOCKED_DTYPES and plain


def _is_plain(mask: Mask, query_length: int, key_length: int) -> bool:
    """Whether the kernel knows this mask by itself: all keys, or causal from the first key, or one last query."""
    if isinstance(mask, Bidirectional):
        return mask.keep is None
    if isinstance(mask, Causal) and query_length == 1:
        return mask.offset == key_length - 1
    return isinstance(mask, Causal) and mask.offset == 0 and hiding_window(mask, query_length) is None


def _matrix(mask: Mask, query_length: int, key_length: int, device: torch.device) -> Tensor | None:
    """Which keys each query sees, `[batch or 1, 1, query length, key length]`; None when the kernel knows."""
    if isinstance(mask, PreparedMask):
        return cast(Tensor, mask.value)
    return None if _is_plain(mask, query_length, key_length) else allowed(mask, query_length, key_length, device)


def _offset(mask: Mask) -> int:
    return mask.offset if isinstance(mask, Causal | PreparedMask) else 0

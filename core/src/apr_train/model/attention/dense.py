"""Masks as plain boolean matrices, for the reference and for kernels that take one."""

from __future__ import annotations

import torch
from torch import Tensor

from apr_train.errors import AttentionError
from apr_train.model.attention.masks import Bidirectional, Causal, CausalAt, Documents, Mask


def allowed(mask: Mask, query_length: int, key_length: int, device: torch.device) -> Tensor | None:
    """Say which query may see which key: `[batch or 1, 1, query length, key length]` bool, or None for all."""
    match mask:
        case Causal(offset=offset, window=window):
            return causal(query_length, key_length, offset, device, window)[None, None]
        case CausalAt(places=places, window=window):
            return _up_to(places, key_length, window)[:, None, None]
        case Bidirectional(keep=keep):
            return None if keep is None else keep[:, None, None, :].expand(-1, 1, query_length, -1)
        case Documents(ids=ids, window=window):
            same = ids[:, None, :, None] == ids[:, None, None, :]
            return same & causal(query_length, key_length, 0, device, window)
    raise AttentionError("this mask was prepared for another backend", where="attention", found=type(mask).__name__)


def causal(query_length: int, key_length: int, offset: int, device: torch.device, window: int | None = None) -> Tensor:
    """`[query length, key length]` bool: offset + query - window < key ≤ offset + query."""
    queries = torch.arange(query_length, device=device)[:, None] + offset
    keys = torch.arange(key_length, device=device)[None, :]
    return keys <= queries if window is None else (keys <= queries) & (keys > queries - window)


def _up_to(places: Tensor, key_length: int, window: int | None) -> Tensor:
    """`[batch, key length]` bool: place - window < key ≤ place."""
    keys, last = torch.arange(key_length, device=places.device), places[:, None]
    return keys <= last if window is None else (keys <= last) & (keys > last - window)

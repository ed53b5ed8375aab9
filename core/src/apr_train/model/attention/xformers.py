"""xformers' memory-efficient attention, kv heads shared by stride. CUDA only; imported only when asked about.

What its layouts can do in version 0.0.35 decides how grouped queries are passed:

- `[batch, length, kv groups, heads per group, dim]` is forward-only: for evaluation and generation;
- in training the groups are folded into the batch, `[batch * groups, length, heads per group, dim]`, and k and v, with
  one head each, are expanded by stride (no memory) over the group's heads;
- block-diagonal masks want batch 1, so for packed documents rows and groups are folded into the length and each
  document's length is repeated, once per group.

In the backward pass its operators give a gradient for every query head's view of k and v, which autograd then adds up:
those two gradients, of one layer at a time, are the only tensors that are as large as expanded k and v would be.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from apr_train.errors import AttentionError
from apr_train.model.acceleration import never_compiled
from apr_train.model.attention.backend import Request
from apr_train.model.attention.masks import Bidirectional, Causal, Documents, Mask, PreparedMask
from apr_train.model.tensors import TORCH_DTYPES

DTYPES = {name: TORCH_DTYPES[name] for name in ("F16", "BF16", "F32")}
"""The dtypes that its operators take."""
PROBE = (24, 40)
"""Documents of the row that is tried out before this backend says that it can run."""


Lengths = tuple[tuple[int, ...], ...]
"""Per row, the documents' lengths."""


class Packed:
    """A batch's documents, and xformers' mask of them, made at the first layer: it holds a tensor on the device."""

    def __init__(self, lengths: Lengths) -> None:
        self.lengths = lengths
        self._masks: dict[int, Any] = {}

    def mask(self, groups: int, device: torch.device) -> Any:
        """The mask for a length in which every row's documents come once per kv group."""
        if groups not in self._masks:
            repeated = [length for row in self.lengths for _ in range(groups) for length in row]
            biases = import_module("xformers.ops.fmha.attn_bias")
            self._masks[groups] = biases.BlockDiagonalCausalMask.from_seqlens(repeated, device=device)
        return self._masks[groups]


class XformersAttention:
    """`memory_efficient_attention` with `LowerTriangularMask`, or `BlockDiagonalCausalMask` for packed documents.

    Args:
        attend: stand-in for `xformers.ops.memory_efficient_attention`, with its signature, for tests without a GPU.
    """

    name = "xformers"

    def __init__(self, attend: Any = None) -> None:
        self._attend = attend

    def supports(self, request: Request) -> str | None:
        """Ask about the device, then the package, then try its operators out."""
        if request.device != "cuda":
            return f"it has no operator on {request.device}, only on cuda"
        if request.dtype not in DTYPES:
            return f"it has no operator for {request.dtype}, only for {', '.join(DTYPES)}"
        if not torch.cuda.is_available():
            return "this torch sees no CUDA device"
        try:
            version("xformers")
            import_module("xformers.ops.fmha")
        except PackageNotFoundError:
            return "not installed: pip install 'apr-train[xformers]'"
        except (ImportError, OSError, RuntimeError) as error:  # built for another torch or CUDA
            return f"it does not import: {error}"
        return _try_out(self, request)

    def prepare(self, mask: Mask, query_length: int, key_length: int, device: torch.device) -> Mask:
        """Read the documents' lengths once for all layers, and make the kernel's mask of them once."""
        if isinstance(mask, Documents):
            return PreparedMask("documents", Packed(mask.lengths or document_lengths(mask.ids)))
        return mask

    # A compiler would trace into the import of xformers, and again for each batch's lengths.
    @never_compiled
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, dropout: float = 0.0) -> Tensor:
        """See `AttentionBackend`."""
        mask = self.prepare(mask, q.shape[1], k.shape[1], q.device)
        q, k, v = _in_autocast_dtype(q, k, v)
        if isinstance(mask, PreparedMask):
            return self._packed(q, k, v, mask.value, dropout)
        if q.shape[2] != k.shape[2] and not _needs_gradient(q, k, v) and isinstance(mask, Causal):
            return self._grouped(q, k, v, mask, dropout)
        out = self._folded(q, k, v, mask, dropout)
        if isinstance(mask, Bidirectional) and mask.keep is not None:
            out = out * mask.keep.any(1)[:, None, None, None]  # a row of padding alone gives zeros
        return out

    def _run(self, q: Tensor, k: Tensor, v: Tensor, bias: Any, dropout: float) -> Tensor:
        attend = self._attend or import_module("xformers.ops").memory_efficient_attention
        out: Tensor = attend(q, k, v, attn_bias=bias, p=dropout)
        return out

    def _grouped(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
        """Five dimensions, forward only."""
        groups, per_group = k.shape[2], q.shape[2] // k.shape[2]
        bias = _bias(mask, q.shape[1], k.shape[1], per_group, q)
        q, k, v = q.detach(), *(x.detach()[:, :, :, None].expand(-1, -1, -1, per_group, -1) for x in (k, v))
        q = q.reshape(*q.shape[:2], groups, per_group, q.shape[3])
        return self._run(q, k, v, bias, dropout).flatten(2, 3)

    def _folded(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
        """Four dimensions, kv groups in the batch unless each query head has its own k and v: forward and backward."""
        batch, groups = q.shape[0], k.shape[2]
        if q.shape[2] == groups:
            return self._run(q, k, v, _bias(mask, q.shape[1], k.shape[1], groups, q), dropout)
        q, k, v = fold_into_batch(q, k, v)
        out = self._run(q, k, v, _bias(mask, q.shape[1], k.shape[1], q.shape[2], q), dropout)
        return _unfold(out, batch, groups)

    def _packed(self, q: Tensor, k: Tensor, v: Tensor, documents: Packed, dropout: float) -> Tensor:
        """Batch 1, rows and kv groups in the length, each row's documents once per group: forward and backward."""
        batch, groups = q.shape[0], k.shape[2]
        q, k, v = fold_into_length(q, k, v)
        return _unfold(self._run(q, k, v, documents.mask(groups, q.device), dropout), batch, groups)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def fold_into_batch(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three as `[batch * groups, length, heads per group, dim]`; k and v are copied once, then expanded by stride."""
    per_group = q.shape[2] // k.shape[2]
    q = _by_group(q, per_group).flatten(0, 1)
    k, v = (x.transpose(1, 2).flatten(0, 1)[:, :, None].expand(-1, -1, per_group, -1) for x in (k, v))
    return q, k, v


def fold_into_length(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three as `[1, batch * groups * length, heads per group, dim]`; k and v are copied once, then expanded."""
    per_group, dim = q.shape[2] // k.shape[2], q.shape[3]
    q = _by_group(q, per_group).reshape(1, -1, per_group, dim)
    k, v = (x.transpose(1, 2).reshape(1, -1, 1, dim).expand(-1, -1, per_group, -1) for x in (k, v))
    return q, k, v


def _by_group(q: Tensor, per_group: int) -> Tensor:
    """`[batch, length, heads, dim]` → `[batch, groups, length, heads per group, dim]`."""
    return q.reshape(*q.shape[:2], -1, per_group, q.shape[3]).transpose(1, 2)


def _unfold(out: Tensor, batch: int, groups: int) -> Tensor:
    """Either folding undone: `[batch, length, heads, dim]`."""
    per_group, dim = out.shape[-2:]
    return out.reshape(batch, groups, -1, per_group, dim).transpose(1, 2).flatten(2, 3)


def document_lengths(ids: Tensor) -> Lengths:
    """Per row of `[batch, length]` document numbers, the documents' lengths. Copies `ids` from the device."""
    rows = ids.cpu()
    return tuple(tuple(torch.unique_consecutive(row, return_counts=True)[1].tolist()) for row in rows)


def _bias(mask: Mask, query_length: int, key_length: int, per_group: int, like: Tensor) -> Any:
    """xformers' object for a mask; padding becomes an additive `[batch, heads per group, q, k]`, expanded by stride."""
    biases = import_module("xformers.ops.fmha.attn_bias")
    if isinstance(mask, Causal) and mask.offset == 0:
        return biases.LowerTriangularMask()
    if isinstance(mask, Causal) and mask.offset == key_length - query_length:
        return biases.LowerTriangularFromBottomRightMask()
    if isinstance(mask, Bidirectional):
        return None if mask.keep is None else _padding(mask.keep, query_length, per_group, like)
    raise AttentionError("xformers cannot express this mask", where="attention", found=f"{mask} for {key_length} keys")


def _padding(keep: Tensor, query_length: int, per_group: int, like: Tensor) -> Tensor:
    """Zero for real keys, the lowest number for padding; rows are stored 8-aligned, as the kernels want."""
    batch, length = keep.shape
    groups = like.shape[0] // batch
    stored = like.new_zeros(batch, -(-length // 8) * 8)
    stored[:, :length].masked_fill_(~keep, torch.finfo(like.dtype).min)
    return stored.repeat_interleave(groups, dim=0)[:, None, None, :length].expand(-1, per_group, query_length, -1)


def _in_autocast_dtype(*tensors: Tensor) -> list[Tensor]:
    """What torch's own attention does under autocast, which does not know of xformers."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return [tensor.to(dtype) for tensor in tensors]


def _try_out(backend: XformersAttention, request: Request) -> str | None:
    """Run the smallest such attention: the operators' own answer, for this device, head size and layout."""
    length = sum(PROBE)
    with torch.enable_grad(), torch.autocast("cuda", enabled=False):
        shapes = [(1, length, heads, request.head_dim) for heads in (request.query_heads, request.kv_heads, request.kv_heads)]
        q, k, v = (torch.zeros(s, device="cuda", dtype=DTYPES[request.dtype], requires_grad=request.training) for s in shapes)
        ids = torch.repeat_interleave(torch.arange(len(PROBE), device="cuda"), torch.tensor(PROBE, device="cuda"))
        keep = torch.ones(1, length, dtype=torch.bool, device="cuda")
        masks: dict[str, Mask] = {
            "causal": Causal(),
            "bidirectional": Bidirectional(keep),
            "documents": Documents(ids[None], (PROBE,)),
        }
        try:
            out = backend(q, k, v, masks[request.mask], dropout=request.dropout)
            if request.training:
                out.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        except (NotImplementedError, ValueError, RuntimeError) as error:
            return " ".join(str(error).split())[:300]
    return None

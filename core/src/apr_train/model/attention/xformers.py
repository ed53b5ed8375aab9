"""xformers' memory-efficient attention, kv heads shared by stride. CUDA only; imported only when asked about.

What its layouts can do in version 0.0.35 decides how grouped queries are passed:

- `[batch, length, kv groups, heads per group, dim]` is forward-only: for evaluation and generation;
- in training the groups are folded into the batch, `[batch * groups, length, heads per group, dim]`, and k and v, with
  one head each, are expanded by stride (no memory) over the group's heads;
- block-diagonal masks want batch 1, so for packed documents rows and groups are folded into the length and each
  document's length is repeated, once per group;
- a sliding window is a mask of its own, `LowerTriangularFromBottomRightLocalAttentionMask`, or for packed documents
  `BlockDiagonalCausalLocalAttentionMask`; both count the query's own key into the window, as `Causal` does.

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
from apr_train.model.attention.masks import (
    Bidirectional,
    Causal,
    Documents,
    Mask,
    PreparedMask,
    hiding_window,
    windowed,
)
from apr_train.model.tensors import TORCH_DTYPES

DTYPES = {name: TORCH_DTYPES[name] for name in ("F16", "BF16", "F32")}
"""The dtypes that its operators take."""
PROBE = (24, 40)
"""Documents of the row that is tried out before this backend says that it can run."""
PROBE_WINDOW = 8
"""The window that is tried out for a model with sliding layers: small enough to hide some of the row's keys."""


Lengths = tuple[tuple[int, ...], ...]
"""Per row, the documents' lengths."""


class Packed:
    """A batch's documents, and xformers' mask of them, made at the first layer: it holds a tensor on the device."""

    def __init__(self, lengths: Lengths, window: int | None = None) -> None:
        self.lengths, self.window = lengths, window
        self._masks: dict[int, Any] = {}

    def mask(self, groups: int, device: torch.device) -> Any:
        """The mask for a length in which every row's documents come once per kv group."""
        if groups not in self._masks:
            repeated = [length for row in self.lengths for _ in range(groups) for length in row]
            biases = import_module("xformers.ops.fmha.attn_bias")
            mask = biases.BlockDiagonalCausalMask.from_seqlens(repeated, device=device)
            self._masks[groups] = mask if self.window is None else mask.make_local_attention(self.window)
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
        if request.softcap is not None:
            return f"its operators have no soft cap (attn_logit_softcapping {request.softcap})"
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
            window = hiding_window(mask, query_length)
            return PreparedMask("documents", Packed(mask.lengths or document_lengths(mask.ids), window), window=window)
        return mask

    # A compiler would trace into the import of xformers, and again for each batch's lengths.
    @never_compiled
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
            AttentionError: for a soft cap; `supports` refuses it, too.
        """
        if softcap is not None:
            raise AttentionError("xformers' operators have no soft cap", where="attention", found=softcap)
        mask = self.prepare(mask, q.shape[1], k.shape[1], q.device)
        q, k, v = _in_autocast_dtype(q, k, v)
        how = {"p": dropout, "scale": scale}
        if isinstance(mask, PreparedMask):
            return self._packed(q, k, v, mask.value, how)
        if q.shape[2] != k.shape[2] and not _needs_gradient(q, k, v) and isinstance(mask, Causal):
            return self._grouped(q, k, v, mask, how)
        out = self._folded(q, k, v, mask, how)
        if isinstance(mask, Bidirectional) and mask.keep is not None:
            out = out * mask.keep.any(1)[:, None, None, None]  # a row of padding alone gives zeros
        return out

    def _run(self, q: Tensor, k: Tensor, v: Tensor, bias: Any, how: dict[str, Any]) -> Tensor:
        attend = self._attend or import_module("xformers.ops").memory_efficient_attention
        out: Tensor = attend(q, k, v, attn_bias=bias, **how)
        return out

    def _grouped(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, how: dict[str, Any]) -> Tensor:
        """Five dimensions, forward only."""
        groups, per_group = k.shape[2], q.shape[2] // k.shape[2]
        bias = _bias(mask, q.shape[1], k.shape[1], per_group, q)
        q, k, v = q.detach(), *(x.detach()[:, :, :, None].expand(-1, -1, -1, per_group, -1) for x in (k, v))
        q = q.reshape(*q.shape[:2], groups, per_group, q.shape[3])
        return self._run(q, k, v, bias, how).flatten(2, 3)

    def _folded(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, how: dict[str, Any]) -> Tensor:
        """Four dimensions, kv groups in the batch unless each query head has its own k and v: forward and backward."""
        batch, groups = q.shape[0], k.shape[2]
        if q.shape[2] == groups:
            return self._run(q, k, v, _bias(mask, q.shape[1], k.shape[1], groups, q), how)
        q, k, v = fold_into_batch(q, k, v)
        out = self._run(q, k, v, _bias(mask, q.shape[1], k.shape[1], q.shape[2], q), how)
        return _unfold(out, batch, groups)

    def _packed(self, q: Tensor, k: Tensor, v: Tensor, documents: Packed, how: dict[str, Any]) -> Tensor:
        """Batch 1, rows and kv groups in the length, each row's documents once per group: forward and backward."""
        batch, groups = q.shape[0], k.shape[2]
        q, k, v = fold_into_length(q, k, v)
        return _unfold(self._run(q, k, v, documents.mask(groups, q.device), how), batch, groups)


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
    window = hiding_window(mask, query_length)
    if isinstance(mask, Causal) and mask.offset == 0 and window is None:
        return biases.LowerTriangularMask()
    if isinstance(mask, Causal) and mask.offset == key_length - query_length:
        lower = biases.LowerTriangularFromBottomRightMask()
        return lower if window is None else lower.make_local_attention(window)
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
    """Run the smallest such attention: the operators' own answer, for this device, head size, window and layout.

    What trains is evaluated, too: without gradients other layouts and operators serve.
    """
    masks = _probe_masks(request)
    for mask in masks if request.window is None else (*masks, *(windowed(mask, PROBE_WINDOW) for mask in masks)):
        for training in (True, False) if request.training else (False,):
            try:
                _probe(backend, request, mask, training)
            except (NotImplementedError, ValueError, RuntimeError) as error:
                what = f"head_dim {request.head_dim}, {request.query_heads} heads over {request.kv_heads}"
                how = ", a sliding window" if getattr(mask, "window", None) else ""
                phase = "training" if training else "evaluation"
                return f"no operator for {what}{how} in {request.dtype} in {phase}: {' '.join(str(error).split())[:300]}"
    return None


def _probe_masks(request: Request) -> tuple[Mask, ...]:
    length = sum(PROBE)
    if request.mask == "causal":
        return (Causal(),)
    if request.mask == "bidirectional":
        return (Bidirectional(torch.ones(1, length, dtype=torch.bool, device=request.device)),)
    ids = torch.repeat_interleave(torch.arange(len(PROBE)), torch.tensor(PROBE)).to(request.device)
    return Documents(ids[None], (PROBE,)), Causal()


def _probe(backend: XformersAttention, request: Request, mask: Mask, training: bool) -> None:
    with torch.set_grad_enabled(training), torch.autocast(request.device, enabled=False):
        heads = (request.query_heads, request.kv_heads, request.kv_heads)
        shapes = [(1, sum(PROBE), count, request.head_dim) for count in heads]
        q, k, v = (
            torch.zeros(shape, device=request.device, dtype=DTYPES[request.dtype], requires_grad=training) for shape in shapes
        )
        out = backend(q, k, v, mask, dropout=request.dropout if training else 0.0, scale=request.scale)
        if training:
            out.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped

import math

import pytest
import torch
from apr_train.model.attention import Bidirectional, Causal, Documents
from apr_train.model.attention.eager import EagerAttention
from apr_train.model.attention.sdpa import SdpaAttention
from apr_train.model.attention.xformers import XformersAttention

BATCH, LENGTH, DIM = 2, 13, 8
LENGTHS = ((5, 1, 7), (13,))


def stand_in(q, k, v, attn_bias=None, p=0.0, scale=None):
    """xformers' documented equivalent code, with its own bias objects; refuses what 0.0.35 refuses."""
    if p != 0.0:
        raise NotImplementedError("dropout")
    if q.ndim == 5 and any(tensor.requires_grad for tensor in (q, k, v)):
        raise NotImplementedError("five dimensions are forward-only")
    if not q.shape[2:] == k.shape[2:] == v.shape[2:]:
        raise ValueError("heads are not broadcast")
    bias = attn_bias
    if hasattr(bias, "materialize"):
        if "BlockDiagonal" in type(bias).__name__ and q.shape[0] != 1:
            raise ValueError("block-diagonal masks want batch 1")
        bias = bias.materialize((q.shape[1], k.shape[1]), dtype=q.dtype)
    q, k, v = (tensor.movedim(1, -2) for tensor in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return (weights @ v).movedim(-2, 1)


@pytest.fixture
def eager():
    return EagerAttention()


@pytest.fixture(params=["sdpa", "blocked", "xformers"])
def backend(request):
    """Every implementation that is compared with eager; xformers' layouts run through its equivalent code."""
    if request.param == "xformers":
        pytest.importorskip("xformers")
        return XformersAttention(attend=stand_in)
    return SdpaAttention(blocked=request.param == "blocked")


def _draw(query_heads, kv_heads, dtype, *, query_length=LENGTH, batch=BATCH, dim=DIM, length=LENGTH, device="cpu"):
    generator = torch.Generator().manual_seed(query_heads * 100 + kv_heads)
    shapes = ((batch, query_length, query_heads, dim), (batch, length, kv_heads, dim), (batch, length, kv_heads, dim))
    tensors = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


def _mask_of(kind):
    """A mask and how many queries it is for."""
    if kind == "padding":
        keep = torch.ones(BATCH, LENGTH, dtype=torch.bool)
        keep[1, 9:] = False
        return Bidirectional(keep), LENGTH
    if kind == "documents":
        ids = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS])
        return Documents(ids.int(), LENGTHS), LENGTH
    return {
        "causal": (Causal(), LENGTH),
        "offset": (Causal(offset=9), LENGTH - 9),
        "last": (Causal(offset=LENGTH - 1), 1),
        "all": (Bidirectional(), LENGTH),
    }[kind]


@pytest.fixture
def draw():
    """q, k, v in float64's random numbers, cast; `draw(query_heads, kv_heads, dtype, …)`."""
    return _draw


@pytest.fixture
def mask_of():
    """A mask by its test name, and how many queries it is for."""
    return _mask_of


@pytest.fixture
def xformers_equivalent():
    """The stand-in for `memory_efficient_attention`."""
    return stand_in

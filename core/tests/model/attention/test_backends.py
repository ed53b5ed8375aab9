"""Each backend against the reference, and grouped queries against full attention."""

import pytest
import torch
from apr_train.model.attention import Bidirectional, Causal, Documents
from apr_train.model.attention import blocked as blocked_module
from apr_train.model.attention.eager import EagerAttention
from apr_train.model.attention.sdpa import SdpaAttention
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

HEADS = [(4, 4), (4, 2), (8, 2), (14, 2), (8, 1), (9, 3)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def forward_and_gradients(attend, tensors, mask):
    out = attend(*tensors, mask)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


def relative(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-30)).item()


def worst(ours, theirs):
    """The largest relative error by torch's maximum, which is NaN for a NaN anywhere; Python's may pass over it."""
    return torch.tensor([relative(mine, other) for mine, other in zip(ours, theirs, strict=True)]).max().item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["causal", "offset", "last", "all", "padding", "documents"])
@pytest.mark.parametrize("heads", HEADS, ids=lambda pair: f"{pair[0]}over{pair[1]}")
def test_backend_agrees_with_eager(backend, eager, draw, mask_of, heads, kind, dtype):
    mask, queries = mask_of(kind)
    tensors = draw(*heads, dtype, query_length=queries)
    ours, theirs = (forward_and_gradients(attend, tensors, mask) for attend in (backend, eager))
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in theirs]
    assert worst(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["causal", "offset", "padding", "documents"])
def test_backend_agrees_with_eager_without_gradients(backend, eager, draw, mask_of, kind):
    mask, queries = mask_of(kind)
    tensors = draw(14, 2, torch.float64, query_length=queries)
    with torch.no_grad():
        assert relative(backend(*tensors, mask), eager(*tensors, mask)) < 1e-12


@pytest.mark.parametrize("kind", ["causal", "offset", "padding", "documents"])
def test_a_prepared_mask_gives_the_same(backend, draw, mask_of, kind):
    mask, queries = mask_of(kind)
    tensors = draw(8, 2, torch.float64, query_length=queries)
    prepared = backend.prepare(mask, queries, tensors[1].shape[1], tensors[0].device)
    assert prepared.kind == mask.kind
    assert torch.equal(backend(*tensors, prepared), backend(*tensors, mask))


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-004")
@pytest.mark.parametrize("name", ["eager", "sdpa", "blocked", "xformers"])
@pytest.mark.parametrize("heads", [(14, 14), (16, 4), (14, 2), (8, 1), (9, 1)], ids=str)
def test_grouped_queries_equal_full_attention_over_repeated_heads(request, eager, draw, name, heads):
    attend = {"eager": eager, "sdpa": SdpaAttention(blocked=False), "blocked": SdpaAttention(blocked=True)}.get(name)
    if attend is None:
        pytest.importorskip("xformers")
        attend = stand_in_backend(request)
    tensors = draw(*heads, torch.float32, dim=64)

    def full(q, k, v, mask):
        k, v = (tensor.repeat_interleave(q.shape[2] // tensor.shape[2], dim=2) for tensor in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8.0
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)

    ours, theirs = (forward_and_gradients(each, tensors, Causal()) for each in (attend, full))
    for mine, other in zip(ours, theirs, strict=True):
        assert F.cosine_similarity(mine.double().flatten(), other.double().flatten(), dim=0) >= 0.9999


def stand_in_backend(request):
    from apr_train.model.attention.xformers import XformersAttention

    return XformersAttention(attend=request.getfixturevalue("xformers_equivalent"))


class Shapes(TorchDispatchMode):
    """Every shape that an operation allocates, and every one it only looks at through strides."""

    def __init__(self):
        super().__init__()
        self.allocated = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.allocated.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("name", ["eager", "blocked", "xformers"])
def test_k_and_v_are_never_expanded_to_the_query_heads(request, name):
    """With few queries and many keys the expanded size stands out: no operation makes a tensor that large."""
    queries, keys, heads, kv_heads, dim = 3, 1009, 14, 2, 64
    q = torch.randn(1, queries, heads, dim)
    k, v = (torch.randn(1, keys, kv_heads, dim) for _ in range(2))
    attend = {"eager": EagerAttention(), "blocked": blocked_scores}.get(name)
    if attend is None:
        pytest.importorskip("xformers")
        attend = stand_in_backend(request)
        attend._attend = Recorder()
    with Shapes() as shapes:
        attend(q, k, v, Causal(offset=keys - queries))
    assert keys * kv_heads * dim <= max(shapes.allocated) < keys * heads * dim


@pytest.mark.filterwarnings("ignore")  # the profiler's own
@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torchs_cpu_kernel_expands_neither_k_nor_v(monkeypatch, dtype, training):
    """What happens inside the kernel no dispatch mode sees; its allocations the profiler does."""
    queries, keys, heads, kv_heads, dim = 3, 1009, 14, 2, 64
    q = torch.randn(1, queries, heads, dim, dtype=dtype, requires_grad=training)
    k, v = (torch.randn(1, keys, kv_heads, dim, dtype=dtype, requires_grad=training) for _ in range(2))
    attend = SdpaAttention(blocked=False)
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")  # read once, by the first profiler of a process: other tests look at stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = attend(q, k, v, Causal(offset=keys - queries))
        if training:
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert 0 < largest < keys * heads * dim * q.element_size() / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
def test_xformers_is_left_alone_by_the_compiler_whatever_the_documents(request, eager, draw):
    """Its imports and its mask's lengths would be compiled in, and again for every batch."""
    pytest.importorskip("xformers")
    attend = stand_in_backend(request)

    @torch.compile
    def layer(q, k, v, mask):
        return attend(q * 2, k, v, mask).sin()

    tensors = draw(4, 2, torch.float32)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in (((5, 8), (13,)), ((4, 9), (6, 7)), ((3, 3, 7), (13,))):
            mask = attend.prepare(Documents(ids_of(lengths), lengths), 13, 13, tensors[0].device)
            expected = eager(tensors[0] * 2, *tensors[1:], Documents(ids_of(lengths))).sin()
            assert relative(layer(*tensors, mask), expected) < 1e-5


def ids_of(lengths):
    rows = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    return torch.stack(rows).int()


def test_xformers_makes_the_mask_of_packed_documents_once_for_all_layers(draw, mask_of):
    fmha = pytest.importorskip("xformers.ops.fmha.attn_bias")
    from apr_train.model.attention.xformers import XformersAttention

    seen = []
    attend = XformersAttention(attend=lambda q, k, v, attn_bias, p, scale: seen.append(attn_bias) or q)
    q, k, v = draw(4, 2, torch.float32)
    mask, _ = mask_of("documents")
    prepared = attend.prepare(mask, 13, 13, q.device)
    for _ in range(3):
        attend(q, k, v, prepared)
    assert isinstance(seen[0], fmha.BlockDiagonalCausalMask)
    assert len({id(bias) for bias in seen}) == 1
    assert seen[0].q_seqinfo.seqstart_py == [0, 5, 6, 13, 18, 19, 26, 39, 52]  # 5, 1, 7 twice, 13 twice


def blocked_scores(q, k, v, mask):
    """The last block's part of `blocked_attention`: its rows against all keys."""
    folded, keys = blocked_module._fold(q, q.shape[2] // k.shape[2]), blocked_module._fold(k, 1)[:, 0]
    terms = blocked_module._Terms(mask.offset, None, 1.0, None)
    (block,) = blocked_module._blocks(q.shape[1], k.shape[1], terms)
    return blocked_module._scores(folded, keys, block, terms, None)


class Recorder:
    """In place of the kernel: notes the strides of k's and v's head dimension, which expansion by stride leaves at 0."""

    def __call__(self, q, k, v, attn_bias=None, p=0.0, scale=None):
        self.strides = [k.stride(-2), v.stride(-2)]
        return torch.zeros_like(q)


@pytest.mark.parametrize("packed", [False, True])
def test_xformers_training_layouts_expand_by_stride_only(packed, mask_of, draw):
    pytest.importorskip("xformers")
    from apr_train.model.attention.xformers import XformersAttention

    record = Recorder()
    mask, _ = mask_of("documents" if packed else "causal")
    q, k, v = draw(14, 2, torch.float32)
    XformersAttention(attend=record)(q, k, v, mask)
    assert record.strides == [0, 0]


def test_a_row_of_padding_alone_gives_zeros_and_finite_gradients(backend, eager, draw):
    keep = torch.ones(2, 13, dtype=torch.bool)
    keep[1] = False
    for attend in (backend, eager):
        out, *gradients = forward_and_gradients(attend, draw(4, 2, torch.float32), Bidirectional(keep))
        assert out[0].abs().sum() > 0
        assert out[1].abs().sum() == 0
        assert all(torch.isfinite(grad).all() for grad in gradients)


def test_documents_see_nothing_of_each_other(backend, draw, mask_of):
    mask, _ = mask_of("documents")
    q, k, v = draw(4, 2, torch.float64)
    packed = backend(q, k, v, mask)[0, 6:13]
    alone = backend(*(tensor[:1, 6:13] for tensor in (q, k, v)), Causal())[0]
    torch.testing.assert_close(packed, alone)


def test_documents_lengths_are_read_from_the_ids_when_not_given(draw, mask_of):
    pytest.importorskip("xformers")
    from apr_train.model.attention.xformers import document_lengths

    mask, _ = mask_of("documents")
    assert document_lengths(mask.ids) == mask.lengths
    assert document_lengths(torch.tensor([[0, 0, 1, 2, 2, 2]])) == ((2, 1, 3),)


@pytest.mark.parametrize("rows", [4, 8])
@pytest.mark.parametrize("kind", ["causal", "documents"])
def test_several_blocks_with_a_short_last_one_agree_with_eager(monkeypatch, eager, draw, mask_of, rows, kind):
    monkeypatch.setattr(blocked_module, "BLOCK_ROWS", rows)
    mask, _ = mask_of(kind)
    tensors = draw(14, 2, torch.float64)
    ours, theirs = (forward_and_gradients(each, tensors, mask) for each in (SdpaAttention(blocked=True), eager))
    assert worst(ours, theirs) < 1e-12


def test_blocks_grow_instead_of_multiplying():
    blocks = blocked_module._blocks(10_000, 10_000, blocked_module._Terms(0, None, 1.0, None))
    assert len(blocks) == blocked_module.MAX_BLOCKS
    assert [rows.start for rows, _ in blocks] == [0, *(rows.stop for rows, _ in blocks[:-1])]
    assert blocks[-1] == (slice(9375, 10_000), slice(0, 10_000))


def test_blocked_bfloat16_keeps_large_scores_apart(draw):
    """Scores of some hundreds, as large key biases make them: rounded to 8 bits they would be off by whole units."""
    q, k, v = (tensor.detach() for tensor in draw(8, 2, torch.bfloat16, dim=64))
    q, k = q * 12, k * 12
    exact = EagerAttention()(q.double(), k.double(), v.double(), Causal())
    with torch.enable_grad():
        ours = blocked_module.blocked_attention(q, k, v)
    assert relative(ours, exact) < 1e-2


def test_autocast_runs_in_bfloat16(backend, draw):
    q, k, v = draw(4, 2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = backend(q, k, v, Causal())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_eager_dropout_drops_and_rescales(eager, draw):
    q, k, _ = draw(4, 4, torch.float32)
    torch.manual_seed(0)
    ones = torch.ones(2, 13, 4, 8)
    dropped = eager(q, k, ones, Bidirectional(), dropout=0.5)
    assert not torch.allclose(dropped, ones)
    assert abs(dropped.mean().item() - 1) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
@pytest.mark.parametrize("kind", ["causal", "documents"])
def test_compiled_sdpa_takes_blocks_and_agrees(monkeypatch, eager, draw, mask_of, kind):
    calls = []
    real = blocked_module.blocked_attention
    monkeypatch.setattr("apr_train.model.attention.sdpa.blocked_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    mask, _ = mask_of(kind)
    tensors = draw(14, 2, torch.float32)
    ours = forward_and_gradients(torch.compile(SdpaAttention()), tensors, mask)
    assert calls
    assert worst(ours, forward_and_gradients(eager, tensors, mask)) < 1e-5


def test_masks_compare_documents_by_number_not_by_position():
    ids = torch.tensor([[3, 3, 5, 5]], dtype=torch.int32)
    from apr_train.model.attention.dense import allowed

    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert torch.equal(allowed(Documents(ids), 4, 4, ids.device)[0, 0], expected)

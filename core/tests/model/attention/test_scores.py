"""Scale, soft cap and sliding window of every backend, against attention written out here and against transformers."""

import attrs
import pytest
import torch
from apr_train.errors import AttentionError, ConfigError
from apr_train.model.attention import Bidirectional, Causal, Documents, PreparedMask, windowed
from apr_train.model.attention import blocked as blocked_module
from apr_train.model.attention.dense import allowed
from apr_train.model.attention.eager import EagerAttention
from apr_train.model.attention.sdpa import SdpaAttention
from apr_train.model.attention.xformers import XformersAttention, _try_out
from apr_train.model.cache import KeyValueCache
from transformers.masking_utils import sliding_window_causal_mask_function
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

LENGTH, LENGTHS, DIM = 13, ((5, 1, 7), (13,)), 8
NAMES = ("eager", "sdpa", "blocked", "xformers")
HEADS = [(4, 4), (4, 2), (9, 3), (8, 1)]
KINDS = {
    "causal": (0, None, False),
    "offset": (9, None, False),
    "last": (12, None, False),
    "documents": (0, None, True),
    "window": (0, 4, False),
    "window of one": (0, 1, False),
    "window and offset": (9, 4, False),
    "window of the last": (12, 4, False),
    "window and documents": (0, 3, True),
}
"""Name → offset, window, whether documents are packed."""


def mask_for(kind):
    offset, window, packed = KINDS[kind]
    if not packed:
        return Causal(offset, window)
    ids = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS])
    return Documents(ids.int(), LENGTHS, window)


def sees(kind, row, query, key):
    """The definition, in plain numbers."""
    offset, window, packed = KINDS[kind]
    position = query + offset
    document = [number for number, length in enumerate(LENGTHS[row]) for _ in range(length)]
    near = window is None or key > position - window
    return key <= position and near and (not packed or document[position] == document[key])


def written_out(q, k, v, kind, scale, softcap):
    """Attention query by query, over the keys that it sees and no others; k and v repeated for the query heads."""
    k, v = (tensor.repeat_interleave(q.shape[2] // tensor.shape[2], dim=2) for tensor in (k, v))
    out = []
    for row in range(q.shape[0]):
        for query in range(q.shape[1]):
            keys = [key for key in range(k.shape[1]) if sees(kind, row, query, key)]
            scores = (k[row, keys] * q[row, query]).sum(-1) * (DIM**-0.5 if scale is None else scale)
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            out.append((scores.softmax(0)[..., None] * v[row, keys]).sum(0))
    return torch.stack(out).view(q.shape)


def backend_of(name, stand_in=None):
    if name == "xformers":
        pytest.importorskip("xformers")
        return XformersAttention(attend=stand_in)
    return {"eager": EagerAttention(), "sdpa": SdpaAttention(blocked=False), "blocked": SdpaAttention(blocked=True)}[name]


def forward_and_gradients(attend, tensors):
    out = attend(*tensors)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


def largest(ours, theirs):
    """The largest error, relative to norms of one or more: with one visible key the gradients of q and k are zero.

    By torch's maximum, which is NaN for a NaN anywhere; Python's may pass over it.
    """
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack([(a - b).norm() / b.norm().clamp(min=1) for a, b in pairs]).max().item()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocked_module, "BLOCK_ROWS", 4)
    monkeypatch.setattr(blocked_module, "KEY_STEP", 1)


@pytest.mark.parametrize(("scale", "softcap"), [(None, None), (0.7, None), (None, 0.5), (0.7, 0.5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS, ids=lambda pair: f"{pair[0]}over{pair[1]}")
def test_every_backend_computes_what_is_written_out(monkeypatch, xformers_equivalent, draw, heads, kind, scale, softcap):
    tensors, mask = draw(*heads, torch.float64, query_length=LENGTH - KINDS[kind][0]), mask_for(kind)
    theirs = forward_and_gradients(lambda q, k, v: written_out(q, k, v, kind, scale, softcap), tensors)
    errors = {}
    for name in (name for name in NAMES if name != "xformers" or softcap is None):
        attend = backend_of(name, xformers_equivalent)
        for block_rows, key_step in ((4, 1), (4, 2), (128, 64)):
            monkeypatch.setattr(blocked_module, "BLOCK_ROWS", block_rows)
            monkeypatch.setattr(blocked_module, "KEY_STEP", key_step)
            ours = forward_and_gradients(lambda q, k, v, a=attend: a(q, k, v, mask, scale=scale, softcap=softcap), tensors)
            with torch.no_grad():
                alone = attend(*tensors, mask, scale=scale, softcap=softcap)
            errors[name, block_rows, key_step] = largest([*ours, alone], [*theirs, theirs[0]])
    assert {name: error for name, error in errors.items() if not error < 1e-12} == {}
    assert len(errors) == (12 if softcap is None else 9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "window" in kind])
@pytest.mark.parametrize("name", NAMES[1:])
def test_a_prepared_window_gives_the_same(small_blocks, xformers_equivalent, draw, name, kind):
    attend, mask = backend_of(name, xformers_equivalent), mask_for(kind)
    tensors = draw(4, 2, torch.float64, query_length=LENGTH - KINDS[kind][0])
    prepared = attend.prepare(mask, tensors[0].shape[1], LENGTH, tensors[0].device)
    assert torch.equal(attend(*tensors, prepared), attend(*tensors, mask))


@pytest.mark.parametrize("kind", ["causal", "offset", "last", "documents"])
@pytest.mark.parametrize("name", NAMES)
def test_a_window_as_long_as_the_keys_changes_no_bit(small_blocks, xformers_equivalent, draw, name, kind):
    attend, mask = backend_of(name, xformers_equivalent), mask_for(kind)
    tensors = draw(4, 2, torch.float32, query_length=LENGTH - KINDS[kind][0])
    plain = forward_and_gradients(lambda q, k, v: attend(q, k, v, mask), tensors)
    for window in (LENGTH, LENGTH + 1, 10_000):
        wide = forward_and_gradients(lambda q, k, v, w=window: attend(q, k, v, windowed(mask, w)), tensors)
        assert all(map(torch.equal, plain, wide))


@pytest.mark.parametrize("name", NAMES)
def test_a_window_one_key_short_hides_the_first_key_from_the_last_query(xformers_equivalent, draw, name):
    attend = backend_of(name, xformers_equivalent)
    q, k, v = draw(4, 2, torch.float64)
    plain, short = (attend(q, k, v, Causal(window=window)) for window in (None, LENGTH - 1))
    assert torch.allclose(plain[:, :-1], short[:, :-1], rtol=1e-12)
    assert not torch.allclose(plain[:, -1], short[:, -1], rtol=1e-3)


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("pieces", [(1,) * LENGTH, (6, 1, 1, 1, 4), (3, 10)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_generation_through_a_cache_sees_the_window_and_no_more(xformers_equivalent, draw, name, pieces, softcap):
    """Past the window's length, in steps of one query and of several, each with the cache's offset."""
    if name == "xformers" and softcap is not None:
        pytest.skip("it has no soft cap")
    attend, cache = backend_of(name, xformers_equivalent), KeyValueCache(1, LENGTH)
    q, k, v = (tensor.detach() for tensor in draw(4, 2, torch.float64))
    out = []
    for part in torch.arange(LENGTH).split(pieces):
        mask = Causal(cache.length, window=4)
        keys, values = cache.append(0, k[:, part], v[:, part])
        out.append(attend(q[:, part], keys, values, mask, softcap=softcap))
    assert largest([torch.cat(out, 1)], [written_out(q, k, v, "window", None, softcap)]) < 1e-12


@pytest.mark.parametrize("name", NAMES[:3])
def test_one_query_for_the_first_of_several_keys_sees_that_key_alone(draw, name):
    q, k, v = draw(4, 4, torch.float64, query_length=1)
    torch.testing.assert_close(backend_of(name)(q, k, v, Causal()), v[:, :1])


@pytest.mark.parametrize("offset", [0, 9])
@pytest.mark.parametrize("window", [1, 4, 13])
def test_the_window_is_transformers_sliding_window(window, offset):
    theirs = sliding_window_causal_mask_function(window)
    queries, keys = torch.arange(offset, LENGTH), torch.arange(LENGTH)
    expected = theirs(0, 0, queries[:, None], keys[None, :])
    ours = allowed(Causal(offset, window), len(queries), LENGTH, queries.device)
    assert torch.equal(ours[0, 0], expected)


@pytest.mark.parametrize("name", NAMES[:3])
def test_scale_and_soft_cap_are_gemma_2s(draw, name):
    q, k, v = (tensor.detach() for tensor in draw(8, 2, torch.float32))
    seen = torch.ones(LENGTH, LENGTH).tril().triu(-3).log()[None, None]
    layer = torch.nn.Module()
    layer.num_key_value_groups = 4
    heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
    theirs, _ = eager_attention_forward(layer, *heads_first, seen, dropout=0.0, scaling=0.4, softcap=1.5)
    ours = backend_of(name)(q, k, v, Causal(window=4), scale=0.4, softcap=1.5)
    assert largest([ours], [theirs]) < 1e-6


def test_gradients_of_blocks_are_those_of_finite_differences(small_blocks, draw):
    attend = SdpaAttention(blocked=True)
    tensors = draw(2, 1, torch.float64, query_length=7, length=7, dim=3, batch=1)
    for mask in (Causal(), Causal(window=3)):
        assert torch.autograd.gradcheck(lambda q, k, v, m=mask: attend(q, k, v, m, scale=0.9, softcap=0.8), tensors)


def test_blocks_leave_out_the_keys_that_no_query_of_theirs_sees(small_blocks):
    blocks = blocked_module._blocks(12, 12, blocked_module._Terms(0, 3, 1.0, None))
    assert blocks == [(slice(0, 4), slice(0, 4)), (slice(4, 8), slice(2, 8)), (slice(8, 12), slice(6, 12))]
    blocks = blocked_module._blocks(4, 20, blocked_module._Terms(16, 5, 1.0, None))
    assert blocks == [(slice(0, 4), slice(12, 20))]


def test_a_windows_first_key_is_rounded_down_for_the_products_sake():
    blocks = blocked_module._blocks(512, 512, blocked_module._Terms(0, 100, 1.0, None))
    assert [keys for _, keys in blocks] == [slice(0, 128), slice(0, 256), slice(128, 384), slice(256, 512)]


def test_a_window_on_the_last_query_reads_the_last_keys_only(monkeypatch, draw):
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", lambda *a, **k: seen.append(a[1]) or real(*a, **k))
    q, k, v = (tensor.detach() for tensor in draw(4, 2, torch.float32, query_length=1))
    SdpaAttention()(q, k, v, Causal(LENGTH - 1, window=4))
    assert seen[0].shape == (2, 2, 4, DIM)


def test_xformers_masks_of_windows_are_its_local_ones(draw):
    biases = pytest.importorskip("xformers.ops.fmha.attn_bias")
    seen = []
    attend = XformersAttention(attend=lambda q, k, v, attn_bias, p, scale: seen.append(attn_bias) or q)
    tensors = draw(4, 2, torch.float32)
    for kind in ("window", "window and documents"):
        attend(*tensors, mask_for(kind))
    expected = [biases.LowerTriangularFromBottomRightLocalAttentionMask, biases.BlockDiagonalCausalLocalAttentionMask]
    assert [type(bias) for bias in seen] == expected
    assert [bias._window_size for bias in seen] == [4, 3]


def test_xformers_folds_a_window_of_grouped_queries_into_five_dimensions_without_gradients(draw):
    pytest.importorskip("xformers")
    seen = []
    attend = XformersAttention(attend=lambda q, k, v, attn_bias, p, scale: seen.append((q.ndim, scale)) or q)
    with torch.no_grad():
        attend(*draw(4, 2, torch.float32), Causal(window=4), scale=0.7)
    assert seen == [(5, 0.7)]


@pytest.mark.parametrize(("training", "phase"), [(True, "training"), (False, "evaluation")])
def test_xformers_names_the_head_size_and_window_that_no_operator_takes(training, phase):
    pytest.importorskip("xformers")
    from apr_train.model.attention import Request

    def refuse_windows(q, k, v, attn_bias, p, scale):
        if "Local" in type(attn_bias).__name__:
            raise NotImplementedError("no\n  window")
        return q

    request = Request(device="cpu", dtype="F32", query_heads=4, kv_heads=2, head_dim=320, mask="documents", training=training)
    backend = XformersAttention(attend=refuse_windows)
    assert _try_out(backend, request) is None
    reason = _try_out(backend, attrs.evolve(request, window=4096))
    assert reason == f"no operator for head_dim 320, 4 heads over 2, a sliding window in F32 in {phase}: no window"


def test_a_soft_cap_that_a_kernel_lacks_is_an_error_and_no_silent_detour(draw):
    keep = torch.ones(2, LENGTH, dtype=torch.bool)
    for mask, dropout in ((Bidirectional(keep), 0.0), (Bidirectional(), 0.0), (Causal(), 0.1)):
        with pytest.raises(AttentionError, match="no soft cap"):
            SdpaAttention()(*draw(4, 2, torch.float32), mask, dropout=dropout, softcap=30.0)
    with pytest.raises(AttentionError, match="no soft cap"):
        XformersAttention(attend=None)(*draw(4, 2, torch.float32), Causal(), softcap=30.0)


def test_a_window_is_given_to_a_mask_and_the_narrower_stays():
    ids = torch.zeros(1, 4, dtype=torch.int32)
    documents = windowed(Documents(ids, ((4,),)), 3)
    assert (documents.ids is ids, documents.lengths, documents.window) == (True, ((4,),), 3)
    assert windowed(Causal(5), 3) == Causal(5, 3)
    assert windowed(Causal(5, 2), 3) == windowed(Causal(5, 4), 2) == Causal(5, 2)
    assert windowed(Causal(5, 2), None) == Causal(5, 2)


@pytest.mark.parametrize("mask", [Bidirectional(), PreparedMask("causal", None)], ids=lambda mask: type(mask).__name__)
def test_no_window_on_a_mask_that_has_none(mask):
    with pytest.raises(AttentionError, match=f"no sliding window.*{type(mask).__name__}"):
        windowed(mask, 3)
    assert windowed(mask, None) is mask


@pytest.mark.parametrize("window", [0, -1, 2.0, True])
def test_a_window_is_a_positive_number_of_keys(window):
    with pytest.raises(ConfigError, match="not a positive integer"):
        Causal(window=window)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "as it is"])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("kind", ["window", "window and documents", "causal", "documents"])
def test_compiled_blocks_compute_what_is_written_out(small_blocks, monkeypatch, draw, kind, softcap, prepared):
    calls, real = [], blocked_module.blocked_attention
    monkeypatch.setattr("apr_train.model.attention.sdpa.blocked_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    attend, mask = SdpaAttention(), mask_for(kind)
    tensors = draw(4, 2, torch.float64)
    if prepared:
        mask = attend.prepare(mask, LENGTH, LENGTH, tensors[0].device)
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, dynamic=False)
    ours = forward_and_gradients(lambda q, k, v: compiled(q, k, v, mask, scale=0.7, softcap=softcap), tensors)
    assert calls
    theirs = forward_and_gradients(lambda q, k, v: written_out(q, k, v, kind, 0.7, softcap), tensors)
    assert largest(ours, theirs) < 1e-12

"""What only a GPU can show: fused kernels against the reference in 16 bits, and their speed."""

import pytest
import torch
from apr_train.errors import AttentionError
from apr_train.model.attention import Causal, Documents, Request, load_backend, windowed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
TOLERANCE = {"BF16": 2e-2, "F16": 4e-3}
LENGTHS = ((100, 28, 128), (256,))


def runnable(name, dtype, heads, mask, window=None):
    backend = load_backend(name)
    request = Request(
        device="cuda", dtype=dtype, query_heads=heads[0], kv_heads=heads[1], head_dim=64, mask=mask, window=window
    )
    reason = backend.supports(request)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return backend


def mask_of(kind):
    if kind == "causal":
        return Causal()
    ids = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS]
    return Documents(torch.stack(ids).int().cuda(), LENGTHS)


def run(attend, tensors, mask):
    out = attend(*tensors, mask)
    weights = torch.linspace(-1, 1, out.numel(), device="cuda").view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-004")
@pytest.mark.parametrize("kind", ["causal", "documents"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(16, 4), (14, 2)], ids=str)
@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_fused_kernels_agree_with_eager(draw, name, heads, dtype, kind):
    backend = runnable(name, dtype, heads, kind)
    tensors = draw(*heads, DTYPES[dtype], query_length=256, length=256, dim=64, device="cuda")
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    ours, theirs = run(backend, tensors, mask_of(kind)), run(load_backend("eager"), exact, mask_of(kind))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.nn.functional.cosine_similarity(mine.float().flatten(), other.flatten(), dim=0) >= 0.9999
        assert ((mine.float() - other).norm() / other.norm()).item() < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["causal", "documents"])
@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_sliding_windows_agree_with_eager(draw, name, kind):
    backend, mask = runnable(name, "BF16", (14, 2), kind, window=50), windowed(mask_of(kind), 50)
    tensors = draw(14, 2, torch.bfloat16, query_length=256, length=256, dim=64, device="cuda")
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    ours, theirs = run(backend, tensors, mask), run(load_backend("eager"), exact, mask)
    for mine, other in zip(ours, theirs, strict=True):
        assert ((mine.float() - other).norm() / other.norm()).item() < TOLERANCE["BF16"]


@pytest.mark.parametrize("queries", [1, 8])
@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_generation_past_a_window_agrees_with_eager(draw, name, queries):
    backend, mask = runnable(name, "BF16", (14, 2), "causal", window=20), Causal(64 - queries, window=20)
    tensors = draw(14, 2, torch.bfloat16, query_length=queries, length=64, dim=64, device="cuda")
    q, k, v = (tensor.detach() for tensor in tensors)
    ours, theirs = backend(q, k, v, mask), load_backend("eager")(q.float(), k.float(), v.float(), mask)
    assert ((ours.float() - theirs).norm() / theirs.norm()).item() < 2e-2


@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_generation_with_a_cache_agrees_with_eager(draw, name):
    backend = runnable(name, "BF16", (14, 2), "causal")
    q, k, v = (tensor.detach() for tensor in draw(14, 2, torch.bfloat16, query_length=8, length=64, dim=64, device="cuda"))
    ours = backend(q, k, v, Causal(56))
    theirs = load_backend("eager")(q.float(), k.float(), v.float(), Causal(56))
    assert ((ours.float() - theirs).norm() / theirs.norm()).item() < 2e-2


def milliseconds(work):
    for _ in range(3):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 10


@pytest.mark.slow
@pytest.mark.parametrize("length", [2048, 4096, 8192])
@pytest.mark.parametrize("heads", [(16, 4), (14, 2)], ids=str)
def test_speed_is_printed(draw, capsys, heads, length):
    tensors = draw(*heads, torch.bfloat16, query_length=length, length=length, dim=64, device="cuda")
    times = {}
    for name in ("sdpa", "xformers"):
        try:
            backend = runnable(name, "BF16", heads, "causal")
        except (AttentionError, pytest.skip.Exception):
            continue
        times[name] = milliseconds(lambda backend=backend: run(backend, tensors, Causal()))
    with capsys.disabled():
        print(f"\n{heads} heads, {length} tokens, forward and backward:", {k: f"{v:.2f} ms" for k, v in times.items()})  # noqa: T201
    assert times

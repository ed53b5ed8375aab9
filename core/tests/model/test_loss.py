"""The fused loss against F.cross_entropy on full logits."""

import pytest
import torch
from apr_train.model.loss import IGNORE, chunked_cross_entropy
from torch.nn import functional as F

ROWS, HIDDEN, VOCAB = 23, 12, 37


def make(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    targets[::4] = IGNORE
    return draw(ROWS, HIDDEN), draw(VOCAB, HIDDEN), draw(VOCAB) if bias else None, targets


def reference(hidden, weight, bias, targets):
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, ignore_index=IGNORE, reduction="sum")


def squashed_reference(hidden, weight, bias, targets, scale, softcap):
    """The formula of head_logits, written out in its own order, and torch's cross entropy of it."""
    logits = scale * F.linear(hidden, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")


def gradients(loss, tensors):
    return torch.autograd.grad(loss, [tensor for tensor in tensors if tensor is not None])


def relative(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("chunk", [1, 5, 17, 18, 1000])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_equal_cross_entropy_on_full_logits(chunk, bias):
    *tensors, targets = make(bias=bias)
    ours, count = chunked_cross_entropy(*tensors, targets, chunk=chunk)
    theirs = reference(*tensors, targets)
    assert int(count) == int((targets != IGNORE).sum())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for mine, other in zip(gradients(ours, tensors), gradients(theirs, tensors), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_gradcheck_in_float64():
    *tensors, targets = make()
    assert torch.autograd.gradcheck(lambda *args: chunked_cross_entropy(*args, targets, chunk=7)[0], tensors)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "softcap"), [(0.3, None), (1.0, 2.5), (0.3, 2.5), (1.7, 30.0)])
def test_scale_and_cap_of_the_head_equal_the_formula_on_full_logits(scale, softcap, bias, chunk):
    *tensors, targets = make(bias=bias)
    ours, _ = chunked_cross_entropy(*tensors, targets, head_scale=scale, head_softcap=softcap, chunk=chunk, scale=0.25)
    theirs = 0.25 * squashed_reference(*tensors, targets, scale, softcap)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for mine, other in zip(gradients(ours, tensors), gradients(theirs, tensors), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_gradcheck_with_scale_and_cap_in_float64():
    *tensors, targets = make()
    options = {"head_scale": 0.6, "head_softcap": 3.0, "chunk": 7}
    assert torch.autograd.gradcheck(lambda *args: chunked_cross_entropy(*args, targets, **options)[0], tensors)


@pytest.mark.parametrize("softcap", [None, 2.5])
def test_a_scale_of_one_is_no_scale_to_the_last_bit(softcap):
    *tensors, targets = make(torch.float32)
    plain, _ = chunked_cross_entropy(*tensors, targets, head_softcap=softcap)
    other, _ = chunked_cross_entropy(*tensors, targets, head_scale=1, head_softcap=softcap)
    assert plain.item() == other.item()


@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("scale", "softcap"), [(0.3, None), (1.0, 2.5), (0.3, 2.5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_scale_and_cap_in_narrow_types_are_close_to_float64(dtype, tolerance, scale, softcap, compiled):
    *tensors, targets = make(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    truth = squashed_reference(*exact, targets, scale, softcap)
    options = {"head_scale": scale, "head_softcap": softcap, "compiled": compiled}
    ours, _ = chunked_cross_entropy(*tensors, targets, chunk=9, **options)
    assert ours.dtype == torch.float32
    assert relative(ours, truth) < tolerance
    for mine, exactly in zip(gradients(ours, tensors), gradients(truth, exact), strict=True):
        assert mine.dtype == dtype
        assert relative(mine, exactly) < tolerance


@pytest.mark.parametrize(("scale", "softcap"), [(0.3, None), (0.3, 2.5)])
def test_scale_and_cap_under_autocast(scale, softcap):
    *tensors, targets = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = chunked_cross_entropy(*tensors, targets, head_scale=scale, head_softcap=softcap, chunk=9)
    truth = squashed_reference(*tensors, targets, scale, softcap)
    for mine, exactly in zip((ours, *gradients(ours, tensors)), (truth, *gradients(truth, tensors)), strict=True):
        assert mine.dtype == torch.float32
        assert relative(mine, exactly) < 2e-2


def test_scale_multiplies_loss_and_gradients():
    *tensors, targets = make()
    plain, _ = chunked_cross_entropy(*tensors, targets, chunk=7)
    scaled, _ = chunked_cross_entropy(*tensors, targets, chunk=7, scale=0.25)
    torch.testing.assert_close(scaled, plain * 0.25)
    for mine, other in zip(gradients(scaled, tensors), gradients(plain, tensors), strict=True):
        torch.testing.assert_close(mine, other * 0.25)


def test_gradients_accumulate_over_calls_and_a_factor_afterwards():
    *tensors, targets = make()
    for _ in range(2):
        (chunked_cross_entropy(*tensors, targets, chunk=7)[0] / 3).backward()
    expected = gradients(reference(*tensors, targets), tensors)
    for tensor, grad in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * grad / 3)


def test_a_matrix_that_is_also_the_embedding_gets_both_gradients():
    _, weight, _, targets = make()
    tokens = torch.arange(ROWS)
    ours, _ = chunked_cross_entropy(F.embedding(tokens, weight), weight, None, targets, chunk=7)
    theirs = reference(F.embedding(tokens, weight), weight, None, targets)
    torch.testing.assert_close(gradients(ours, [weight]), gradients(theirs, [weight]))


@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bfloat16_weights_are_as_close_to_float64_as_torchs_own(compiled):
    *tensors, targets = make(torch.bfloat16, bias=False)
    exact = [tensor if tensor is None else tensor.detach().double().requires_grad_() for tensor in tensors]
    truth = reference(*exact, targets)
    ours, _ = chunked_cross_entropy(*tensors, targets, chunk=9, compiled=compiled)
    theirs = F.cross_entropy(F.linear(*tensors).float(), targets, ignore_index=IGNORE, reduction="sum")
    assert ours.dtype == torch.float32
    assert abs((ours - truth).item()) < 2e-3 * truth.item()
    pairs = ((ours, tensors), (theirs, tensors), (truth, exact))
    for mine, other, exactly in zip(*(gradients(*pair) for pair in pairs), strict=True):
        assert mine.dtype == torch.bfloat16
        assert relative(mine, exactly) < 1.5 * relative(other, exactly) + 1e-3


@pytest.mark.parametrize("slices", ["one", "many"])
def test_autocast_computes_in_bfloat16_and_gives_float32_gradients(slices, monkeypatch):
    if slices == "many":
        monkeypatch.setattr("apr_train.model.loss.SLICE_ELEMENTS", 40)
    *tensors, targets = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = chunked_cross_entropy(*tensors, targets, chunk=9)
    truth = reference(*tensors, targets)
    assert 0 < abs((ours - truth).item()) < 5e-3 * truth.item()
    for mine, exactly in zip(gradients(ours, tensors), gradients(truth, tensors), strict=True):
        assert mine.dtype == torch.float32
        assert relative(mine, exactly) < 2e-2


def test_no_row_that_counts_gives_zero_and_zero_gradients():
    *tensors, targets = make()
    loss, count = chunked_cross_entropy(*tensors, torch.full_like(targets, IGNORE))
    assert (loss.item(), int(count)) == (0.0, 0)
    assert all(float(grad.abs().sum()) == 0.0 for grad in gradients(loss, tensors))


def test_without_gradients_none_are_made(monkeypatch):
    *tensors, targets = make()
    monkeypatch.setattr("apr_train.model.loss._Gradients", None)
    with torch.no_grad():
        loss, _ = chunked_cross_entropy(*tensors, targets, chunk=7)
    torch.testing.assert_close(loss, reference(*tensors, targets))


def test_inputs_are_left_as_they_were():
    *tensors, targets = make(torch.float32)
    before = [tensor.detach().clone() for tensor in tensors]
    chunked_cross_entropy(*tensors, targets, chunk=7)[0].backward()
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest tensor that any operation makes, in elements."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize(("chunk", "most"), [(20, 400 * 8), (None, 400 * 101 // 2)])
def test_full_logits_are_never_in_memory(chunk, most):
    hidden, weight = torch.randn(400, 8, requires_grad=True), torch.randn(101, 8, requires_grad=True)
    targets = torch.zeros(400, dtype=torch.int64)
    with Largest() as largest:
        chunked_cross_entropy(hidden, weight, None, targets, chunk=chunk)[0].backward()
    assert largest.elements <= most

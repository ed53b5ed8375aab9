"""The gradient of an embedding that is the head's matrix, too: as torch's own makes it, without a second dense matrix."""

import pytest
import torch
from apr_train.model.loss import chunked_cross_entropy
from apr_train.model.tied_rows import add_rows_apart, rows_apart
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

VOCAB, HIDDEN = 211, 16


class Tied(nn.Module):
    """An embedding, something behind it, and a head with the same matrix."""

    def __init__(self, padding, dtype):
        super().__init__()
        self.words = nn.Embedding(VOCAB, HIDDEN, padding_idx=padding, dtype=dtype)
        self.other = nn.Embedding(VOCAB, HIDDEN, dtype=dtype)

    @property
    def head_weight(self):
        return self.words.weight

    def loss(self, tokens):
        hidden = torch.tanh(self.words(tokens).mul_(3) + self.other(tokens))
        loss, _ = chunked_cross_entropy(hidden.flatten(0, 1), self.head_weight, None, tokens.flatten().roll(1))
        return loss


def model_of(padding=None, dtype=torch.float32):
    torch.manual_seed(0)
    return Tied(padding, dtype)


def tokens_of(number):
    return torch.randint(0, 40, (3, 50), generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_one_and_of_several_batches_are_torchs_own_to_the_bit(padding, dtype):
    plain, ours = model_of(padding, dtype), model_of(padding, dtype)
    add_rows_apart(ours)
    for number in range(3):
        plain.loss(tokens_of(number)).backward()
        with rows_apart(ours):
            ours.loss(tokens_of(number)).backward()
        for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)


class Matrices(TorchDispatchMode):
    """Counts the operations that make a tensor of the embedding's shape anew."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = [item.untyped_storage().data_ptr() for item in args if isinstance(item, torch.Tensor)]
        if isinstance(out, torch.Tensor) and out.shape == (VOCAB, HIDDEN):
            self.made += out.untyped_storage().data_ptr() not in known
        return out


def test_no_matrix_is_made_behind_the_heads():
    model = model_of()
    model.other.requires_grad_(False)
    add_rows_apart(model)
    with rows_apart(model):
        loss = model.loss(tokens_of(0))
        with Matrices() as seen:
            loss.backward()
    assert seen.made == 0
    loss = model_of().loss(tokens_of(0))
    with Matrices() as torchs:
        loss.backward()
    assert torchs.made


def test_outside_gradients_are_autograds():
    model, plain = model_of(), model_of()
    add_rows_apart(model)
    for item in (model, plain):
        item.words(tokens_of(0)).square().sum().backward()
    assert torch.equal(model.words.weight.grad, plain.words.weight.grad)


def test_what_fails_inside_leaves_the_embedding_as_it_was():
    model, plain = model_of(), model_of()
    add_rows_apart(model)
    with pytest.raises(ValueError, match="no"), rows_apart(model):
        model.loss(tokens_of(1))
        raise ValueError("no")
    for item in (model, plain):
        item.loss(tokens_of(0)).backward()
    assert torch.equal(model.words.weight.grad, plain.words.weight.grad)


@pytest.mark.parametrize("trained", [True, False])
def test_a_model_that_is_not_tied_or_not_trained_is_left_alone(trained):
    model = model_of()
    if trained:
        model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
        model.head_weight = model[1].weight
    model.requires_grad_(trained)
    add_rows_apart(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_an_embedding_without_a_head_inside_has_its_rows():
    model = model_of()
    add_rows_apart(model)
    with rows_apart(model):
        model.words(tokens_of(0)).sum().backward()
    expected = torch.autograd.grad(F.embedding(tokens_of(0), model.words.weight).sum(), model.words.weight)
    assert torch.equal(model.words.weight.grad, *expected)

"""The cost of each token, against torch's cross entropy of all logits at once, and against the loss of training."""

from types import SimpleNamespace

import pytest
import torch
from apr_train.model import nats
from apr_train.model.loss import IGNORE, head_loss
from apr_train.model.nats import token_nats
from torch.nn import functional as F

ROWS, HIDDEN, VOCABULARY = 23, 16, 61


def head(dtype, *, bias=False, scale=1.0, softcap=None):
    """A model that has nothing but its head, whose logits lie far apart; and hidden states, and targets."""
    draw = torch.Generator().manual_seed(0)
    weight, hidden = (torch.randn(size, HIDDEN, generator=draw, dtype=torch.float64) for size in (VOCABULARY, ROWS))
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=draw)
    targets[::5] = IGNORE
    offset = torch.randn(VOCABULARY, generator=draw, dtype=torch.float64).to(dtype) if bias else None
    model = SimpleNamespace(head_weight=(3 * weight).to(dtype), head_bias=offset, head_scale=scale, head_softcap=softcap)
    model.head_input = lambda states: states
    return model, hidden.to(dtype), targets


@pytest.mark.parametrize("piece", [1, 3 * VOCABULARY, nats.PIECE])
@pytest.mark.parametrize("given", [{}, {"bias": True}, {"scale": 0.25}, {"softcap": 15.0, "scale": 2.0}])
def test_each_token_costs_what_cross_entropy_says(monkeypatch, piece, given):
    monkeypatch.setattr(nats, "PIECE", piece)
    monkeypatch.setattr(nats, "ROWS", 7)
    model, hidden, targets = head(torch.float64, **given)
    logits = F.linear(hidden, model.head_weight, model.head_bias) * model.head_scale
    logits = logits if model.head_softcap is None else model.head_softcap * (logits / model.head_softcap).tanh()
    expected = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE)
    torch.testing.assert_close(token_nats(model, hidden, targets), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("weights", "autocast"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_the_sum_is_the_loss_of_training(weights, autocast):
    """The logits are in the same dtype, so that they are the same."""
    model, hidden, targets = head(getattr(torch, weights), bias=True, scale=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), torch.no_grad():
        found = token_nats(model, hidden, targets)
        expected = head_loss(model, hidden, targets)
    assert found.dtype == torch.float32
    assert float(found.double().sum()) == pytest.approx(float(expected), rel=1e-6)


def test_nothing_to_predict_costs_nothing():
    model, hidden, targets = head(torch.float32)
    assert not token_nats(model, hidden, torch.full_like(targets, IGNORE)).any()

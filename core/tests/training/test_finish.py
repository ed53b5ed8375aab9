"""The sample at a run's end: the most likely tokens, as many as fit, up to the end of the text."""

import pytest
import torch
from apr_train.model.attention.masks import Causal
from apr_train.model.device import PRECISIONS
from apr_train.training.finish import greedy

PROMPT = (3, 5, 7, 9)


@pytest.fixture
def model(make_run):
    """Of 16 positions, and with weights large enough that it does not say one token for ever."""
    model = make_run(positions=16).model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    return model


def sample(model, prompt=PROMPT, *, length, ends=()):
    return greedy(model, prompt, length=length, ends=ends, precision=PRECISIONS["fp32"])


@torch.no_grad()
def uncached(model, ids, length):
    """The same by computing everything again for each token."""
    ids = list(ids)
    for _ in range(length):
        hidden = model.hidden_states(torch.tensor([ids]), mask=Causal())
        ids.append(int(model.logits(hidden[:, -1]).argmax(-1)))
    return ids[-length:]


def test_it_says_what_is_most_likely(model):
    expected = uncached(model, PROMPT, 8)
    assert len(set(expected)) > 3
    assert sample(model, length=8) == expected


def test_it_ends_before_the_end_of_the_text(model):
    expected = uncached(model, PROMPT, 8)
    end = expected[3]
    assert sample(model, length=8, ends={end}) == expected[: expected.index(end)]


@pytest.mark.parametrize("length", [15, 16, 99])
def test_it_stays_inside_the_positions_of_the_model(model, length):
    assert sample(model, length=length) == uncached(model, PROMPT[-1:], 15)


def test_of_a_long_prompt_the_end_is_read(model):
    prompt = [index % 7 for index in range(40)]
    assert sample(model, prompt, length=6) == uncached(model, prompt[-10:], 6)


def test_the_model_trains_on_as_before(model):
    model.train()
    sample(model, length=2)
    assert model.training

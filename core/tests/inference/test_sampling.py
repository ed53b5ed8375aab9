"""Choosing tokens, against transformers' logits warpers."""

import math
from collections import Counter

import pytest
import torch
from apr_train.errors import ConfigError, RunError
from apr_train.inference.generate import Sampler, Sampling, filtered
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


def theirs(logits, sampling):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers(torch.zeros(1, 1, dtype=torch.int64), logits[None].clone())[0].softmax(-1)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 3),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.01, 0.999),
)
def test_probabilities_are_those_of_transformers(seed, temperature, top_k, top_p):
    logits = 3 * torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    ours = filtered(logits, sampling).softmax(-1)
    torch.testing.assert_close(ours, theirs(logits, sampling), rtol=1e-9, atol=1e-12)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = [
        int(filtered(logits, Sampling(temperature=1, top_p=p)).isfinite().sum()) for p in (0.01, 0.49, 0.51, 0.79, 0.94, 1.0)
    ]
    assert kept == [1, 1, 2, 2, 3, 4]


def test_greedy_is_the_most_likely_whatever_the_seed():
    logits = torch.tensor([0.0, 2.0, 1.0])
    assert {Sampler(Sampling(seed=seed)).choose(logits) for seed in range(5)} == {1}


def test_a_seed_decides_every_draw():
    logits = torch.zeros(1000)
    draws = [
        [sampler.choose(logits) for _ in range(8)] for sampler in (Sampler(Sampling(temperature=1, seed=s)) for s in (1, 1, 2))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_draws_have_the_wanted_frequencies():
    sampler = Sampler(Sampling(temperature=0.5, seed=5))
    logits = torch.tensor([math.log(4.0), math.log(2.0), 0.0])  # squared by the temperature: 16 : 4 : 1
    counts = Counter(sampler.choose(logits) for _ in range(4000))
    assert [counts[i] / 4000 for i in range(3)] == pytest.approx([16 / 21, 4 / 21, 1 / 21], abs=0.025)


def test_no_temperature_is_too_small_to_draw_with():
    assert Sampler(Sampling(temperature=1e-300)).choose(torch.tensor([1.0, 3.0, 2.0])) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_logits_that_make_no_probabilities_are_an_error(temperature, logits):
    with pytest.raises(RunError, match="not a number"):
        Sampler(Sampling(temperature=temperature)).choose(torch.tensor(logits))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 1, "top_k": 0},
        {"temperature": 1, "top_p": 0.0},
        {"temperature": 1, "top_p": 1.1},
        {"temperature": 1, "top_p": math.nan},
        {"seed": -1},
        {"seed": 1 << 63},
        {"top_k": 5},
        {"top_p": 0.9},
    ],
)
def test_values_that_cannot_be_are_refused_by_name(values):
    with pytest.raises(ConfigError, match=r"--(temperature|top-k|top-p|seed)"):
        Sampling(**values)

"""Tokens one after the other with a cache, against everything computed again for each of them."""

from itertools import pairwise

import pytest
import torch
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model.attention import Causal, load_backend
from apr_train.model.cache import KeyValueCache
from apr_train.model.decoder import Decoder
from apr_train.model.device import Precision
from apr_train.model.generation import generate_tokens, next_logits

IDS = [7, 3, 11, 3, 60, 2, 41, 41, 5, 19]
FLOAT64 = Precision(name="fp64", weights=torch.float64, autocast=None, kernel_dtype="F64")
CPU = torch.device("cpu")


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    """With weights large enough that it does not say one token for ever."""
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 32}
    config = DecoderConfig(**sizes, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=True)
    made = Decoder(config, load_backend(request.param)).double().eval()
    made.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    return made


@torch.no_grad()
def whole_logits(model, ids):
    """`[length, vocab]`."""
    return model.logits(model.hidden_states(torch.tensor([ids]), mask=Causal()))[0]


def test_cached_logits_are_the_uncached_ones(model):
    whole, cache = whole_logits(model, IDS), KeyValueCache(2, max_length=len(IDS))
    for begin, end in pairwise([0, 3, 4, 5, 8, len(IDS)]):  # parts of several lengths, one among them
        logits = next_logits(model, torch.tensor([IDS[begin:end]]), cache)
        torch.testing.assert_close(logits, whole[end - 1], rtol=0, atol=1e-10)


def test_each_token_is_chosen_from_what_everything_before_it_says(model):
    ids, seen = list(IDS), []

    def second_best(logits):
        seen.append(logits)
        return int(logits.topk(2).indices[1])

    made = list(generate_tokens(model, IDS, length=6, choose=second_best, precision=FLOAT64, device=CPU))
    assert len(made) == 6
    for index, logits in zip(made, seen, strict=True):
        expected = whole_logits(model, ids)[-1]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        assert index == int(expected.topk(2).indices[1])
        ids.append(index)
    assert len(set(made)) > 1


def test_what_a_cache_holds_of_the_prompt_is_not_computed_again(model, monkeypatch):
    """The cache has seen other tokens behind the prompt, as one that measured another text after it."""
    how = {"length": 6, "choose": lambda logits: int(logits.argmax()), "precision": FLOAT64, "device": CPU}
    wanted = list(generate_tokens(model, IDS, **how))
    cache = KeyValueCache(2, max_length=len(IDS) + 6)
    next_logits(model, torch.tensor([[*IDS, 5, 6, 7]]), cache)
    cache.truncate(len(IDS) - 1)
    lengths = []
    hidden_states = model.hidden_states
    told = lambda tokens, **how: lengths.append(tokens.shape[1]) or hidden_states(tokens, **how)  # noqa: E731
    monkeypatch.setattr(model, "hidden_states", told)
    assert list(generate_tokens(model, IDS, cache=cache, **how)) == wanted
    assert lengths == [1] * 6


def test_no_token_is_computed_before_it_is_asked_for(model):
    chosen = []
    tokens = generate_tokens(model, IDS, length=5, choose=lambda _: chosen.append(0) or 0, precision=FLOAT64, device=CPU)
    assert (next(tokens), next(tokens), len(chosen)) == (0, 0, 2)

"""Tokens one after the other with a cache, against everything computed again for each of them."""

from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model import decoding
from apr_train.model.attention import Causal, load_backend
from apr_train.model.cache import FixedCache, KeyValueCache
from apr_train.model.decoder import Decoder
from apr_train.model.decoding import compile_steps, fixed_length, pays, why_not_in_rows
from apr_train.model.device import Precision
from apr_train.model.generation import Asked, generate_together, generate_tokens, next_logits, next_of_rows

IDS = [7, 3, 11, 3, 60, 2, 41, 41, 5, 19]
FLOAT64 = Precision(name="fp64", weights=torch.float64, autocast=None, kernel_dtype="F64")
FLOAT32 = Precision(name="fp32", weights=torch.float32, autocast=None, kernel_dtype="F32")
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


def alone(model, prompt, length):
    best = lambda logits: int(logits.argmax())  # noqa: E731
    return list(generate_tokens(model, prompt, length=length, choose=best, precision=FLOAT64, device=CPU))


class Reader:
    """Takes tokens of a text, until it has `most`."""

    def __init__(self, prompt, length, most):
        self.made, self.most = [], most
        self.asked = Asked(prompt=prompt, length=length, take=self.take)

    def take(self, index):
        self.made.append(index)
        return len(self.made) < self.most


PROMPTS = [IDS, IDS[:1], IDS[3:8], [9, 9], IDS[::-1], [60]]
LENGTHS = [6, 9, 1, 12, 4, 9]
MOST = [99, 99, 99, 5, 1, 99]
"""The fourth text ends before its length, the fifth at its first token."""


@pytest.mark.parametrize("rows", [1, 2, 4, 16])
def test_texts_that_go_on_together_get_what_each_gets_alone(model, rows):
    readers = [Reader(*texts) for texts in zip(PROMPTS, LENGTHS, MOST, strict=True)]
    best = lambda logits: logits.argmax(-1).tolist()  # noqa: E731
    generate_together(model, [x.asked for x in readers], rows=rows, choose=best, precision=FLOAT64, device=CPU)
    for reader, prompt, length in zip(readers, PROMPTS, LENGTHS, strict=True):
        assert reader.made == alone(model, prompt, length)[: reader.most]


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_sliding_window_slides_in_each_row_from_its_own_place(backend):
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 32, "sliding_window": 4}
    sizes["layer_types"] = ("sliding_attention", "full_attention")
    config = DecoderConfig(**sizes, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=True)
    sliding = Decoder(config, load_backend(backend)).double().eval()
    sliding.initialize(torch.Generator().manual_seed(0))
    cache, texts = FixedCache(2, rows=3, max_length=20, device=CPU), [list(IDS), IDS[:2], IDS[:5]]
    for row, ids in enumerate(texts):
        text = KeyValueCache(2, max_length=20)
        next_logits(sliding, torch.tensor([ids]), text)
        cache.begin(row, text)
    for index in range(6):
        logits = next_of_rows(sliding, torch.tensor([index, index + 1, index + 2]), cache)
        for row, ids in enumerate(texts):
            ids.append(index + row)
            torch.testing.assert_close(logits[row], whole_logits(sliding, ids)[-1], rtol=0, atol=1e-10)


def test_models_whose_texts_cannot_stand_in_rows_say_why(model):
    """A mask for one place a row is no backend's duty, a soft cap counts keys, LongRoPE depends on the whole length."""
    assert why_not_in_rows(model) is None
    model.attention = SimpleNamespace(name="another")
    assert why_not_in_rows(model) == "the attention backend another takes no text at a place of its own"
    assert why_not_in_rows(torch.nn.Linear(1, 1)) == "Linear is not the core's decoder"


def test_logits_of_rows_are_those_of_everything_computed_again(model):
    """At places of their own, in a cache that held longer texts before."""
    cache = FixedCache(2, rows=3, max_length=20, device=CPU)
    for texts in (([*IDS, *IDS[:8]],) * 3, (IDS[:3], IDS[4:], IDS[:7])):
        for row, ids in enumerate(texts):
            text = KeyValueCache(2, max_length=20)
            next_logits(model, torch.tensor([ids]), text)
            cache.begin(row, text)
    texts = [list(ids) for ids in texts]
    for index in (5, 17, 2):
        logits = next_of_rows(model, torch.tensor([index, index + 1, index + 2]), cache)
        for row, ids in enumerate(texts):
            ids.append(index + row)
            torch.testing.assert_close(logits[row], whole_logits(model, ids)[-1], rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
def test_a_compiled_step_reads_weights_by_sums_and_gives_the_same_logits():
    """In one graph for all blocks, whatever the number of tokens; the prompt is read uncompiled."""
    torch._dynamo.reset()
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 32, "attention_bias": True}
    config = DecoderConfig(**sizes, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=True)
    model = Decoder(config, load_backend("sdpa")).eval()
    model.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.ndim == 2 else 1)
    model.requires_grad_(False)
    wanted = [Reader(IDS, 9, 99), Reader(IDS[:2], 5, 99)]
    seen = {False: [], True: []}
    graphs = []
    for compiled in (False, True):
        if compiled:
            compile_steps(model)
        with torch._dynamo.config.patch(recompile_limit=1), watched(graphs):
            for reader in wanted:
                choose = lambda logits: seen[compiled].append(logits) or int(logits.argmax())  # noqa: B023, E731
                how = {"choose": choose, "precision": FLOAT32, "device": CPU, "compiled": compiled}
                list(generate_tokens(model, reader.asked.prompt, length=reader.asked.length, **how))
    torch.testing.assert_close(seen[True], seen[False], rtol=0, atol=1e-4)  # of logits up to 40, say
    assert [len(graph.find_nodes(op="call_function", target=torch._C._nn.linear)) for graph in graphs] == [0, 0]


@contextmanager
def watched(graphs):
    """Keep the graphs that go to the compiler: one for the blocks, one for the head."""
    spelt = decoding._spell_all
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_spell_all", lambda graph: spelt(graph) or graphs.append(graph))
        yield


def test_what_a_compilation_is_made_up_for():
    config = DecoderConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=8,
        max_position_embeddings=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    model = Decoder(config, load_backend("sdpa"))
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert pays(model, -(-int(decoding.PAYS) // weights))
    assert not pays(model, int(decoding.PAYS) // weights - 1)
    assert not pays(model.bfloat16(), int(decoding.PAYS))
    assert [fixed_length(tokens) for tokens in (1, 256, 257, 512, 513)] == [256, 256, 512, 512, 1024]

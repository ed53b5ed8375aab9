"""Continuations: against transformers, and where they end."""

import pytest
import torch
from apr_train.data.special_tokens import ids_of_prompt
from apr_train.errors import ConfigError, DataError
from apr_train.inference.generate import Ends, Sampling, continue_text, ends_of_text, room

GREEDY = Sampling()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_gives_transformers_tokens(make_ready, transformers_llama, attention):
    ready = make_ready(attention=attention)
    prompt = "def alpha(value):"
    ids = ids_of_prompt(ready.tokenizer, prompt)
    expected = transformers_llama(ready).generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=30, do_sample=False, pad_token_id=3
    )
    ours = continue_text(ready, prompt, sampling=GREEDY, ends=Ends(max_tokens=30)).tokens
    assert list(ours) == expected[0, len(ids) :].tolist()
    assert len(set(ours)) > 3  # no loop of one token, which any model could agree on


def test_text_is_emitted_piece_by_piece_and_adds_up(make_ready):
    pieces = []
    made = continue_text(
        make_ready(), "def", sampling=Sampling(temperature=1.5, seed=1), ends=Ends(max_tokens=40), emit=pieces.append
    )
    assert "".join(pieces) == made.text
    assert len(pieces) > 5
    assert (made.stopped_by, len(made.tokens)) == ("length", 40)


def test_the_same_seed_writes_the_same_text(make_ready):
    ready = make_ready()
    texts = [
        continue_text(ready, "def", sampling=Sampling(temperature=1, top_p=0.9, seed=seed), ends=Ends(max_tokens=20)).text
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_it_ends_at_the_end_of_text_token(scripted):
    ready = scripted(" one two")
    made = continue_text(ready, "def f():", sampling=GREEDY, ends=Ends(tokens=ends_of_text(ready)))
    assert (made.text, made.stopped_by, made.tokens[-1]) == (" one two", "end of text", 0)


def test_it_ends_before_a_stop_string(scripted):
    made = continue_text(scripted("\n    return 1\n\ndef g"), "def f():", sampling=GREEDY, ends=Ends(stop=("\ndef", "class")))
    assert (made.text, made.stopped_by) == ("\n    return 1\n", "stop string")


def test_ends_of_text_are_those_of_tokenizer_and_metadata(make_ready):
    assert ends_of_text(make_ready(metadata={"eos_token_id": [2, 4]})) == {0, 2, 4}
    assert ends_of_text(make_ready(metadata={"eos_token_id": 2})) == {0, 2}


def test_a_bos_that_the_tokenizer_wants_is_put_in_front_and_its_eos_is_not(make_ready, with_bos):
    plain = ids_of_prompt(make_ready().tokenizer, "def f")
    assert ids_of_prompt(make_ready(tokenizer=with_bos).tokenizer, "def f") == [1, *plain]


@pytest.mark.parametrize("prompt", ["", "\ud800"])
def test_a_prompt_without_text_is_an_error(make_ready, prompt):
    with pytest.raises(DataError, match="prompt"):
        continue_text(make_ready(), prompt, sampling=GREEDY, ends=Ends())


def test_tokens_beyond_the_positions_are_refused_before_any_is_made(make_ready):
    ready = make_ready()
    with pytest.raises(ConfigError, match=r"at most 64 in all.*--max-tokens 54 is the most"):
        room(ready, 10, 55)
    with pytest.raises(ConfigError, match="Shorten the prompt"):
        room(ready, 64, None)
    assert (room(ready, 10, 54), room(ready, 10, None), room(make_ready(max_position_embeddings=4096), 10, None)) == (
        54,
        54,
        256,
    )


def test_every_position_can_be_used(make_ready):
    ready = make_ready(max_position_embeddings=16)
    made = continue_text(ready, "def", sampling=GREEDY, ends=Ends())
    assert made.prompt_tokens + len(made.tokens) == 16

"""Fillers of masks, against logits of the whole text."""

import json

import attrs
import pytest
import torch
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import ConfigError, DataError, RunError
from apr_train.inference.fill import fill_mask
from apr_train.model.attention.masks import Bidirectional


def test_fillers_are_the_most_probable_tokens_of_each_mask(make_ready, in_float64):
    ready = make_ready("encoder", precision=in_float64)
    masks = fill_mask(ready, "def <mask>(value): return<mask>", count=3)
    ids = [1, *ready.tokenizer.encode("def <mask>(value): return<mask>"), 0]
    places = [place for place, index in enumerate(ids) if index == 4]
    logits = ready.model.logits(ready.model.hidden_states(torch.tensor([ids]), mask=Bidirectional(None)))[0]
    for fillers, place in zip(masks, places, strict=True):
        expected = logits[place].softmax(-1).sort(descending=True)
        assert [filler.id for filler in fillers] == expected.indices[:3].tolist()
        assert [filler.probability for filler in fillers] == pytest.approx(expected.values[:3].tolist(), rel=1e-6)
        assert [filler.token for filler in fillers] == [ready.tokenizer.decode([index]) for index in expected.indices[:3]]


def test_all_fillers_have_probability_one_together(make_ready):
    (fillers,) = fill_mask(make_ready("encoder"), "x <mask> y", count=10_000)
    assert len(fillers) == 320
    assert sum(filler.probability for filler in fillers) == pytest.approx(1, abs=1e-5)


def test_a_text_without_a_mask_is_an_error_that_names_it(make_ready):
    with pytest.raises(DataError, match=r"no mask.*a text with <mask> in it"):
        fill_mask(make_ready("encoder"), "def f(x):", count=3)


def test_a_text_beyond_the_positions_is_refused(make_ready):
    with pytest.raises(ConfigError, match="at most 36 tokens"):
        fill_mask(make_ready("encoder"), "<mask>" + " é数" * 40, count=3)


def test_a_tokenizer_without_a_mask_is_an_error_that_says_what_to_give(make_ready):
    ready = make_ready("encoder")
    content = json.loads(ready.tokenizer.backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<mask>"]
    del content["model"]["vocab"]["<mask>"]
    ids = {"eos": 0, "bos": 1, "pad": 3}
    tokenizer = build_tokenizer(TokenizerSpec(json=content, special_ids=ids, size=320, origin="made here"))
    with pytest.raises(DataError, match=r"no mask token.*--tokenizer"):
        fill_mask(attrs.evolve(ready, tokenizer=tokenizer), "x <mask>", count=3)


def test_weights_that_are_no_numbers_are_an_error(make_ready):
    ready = make_ready("encoder")
    ready.model.head_bias[7] = torch.nan
    with pytest.raises(RunError, match="not a number"):
        fill_mask(ready, "x <mask>", count=3)

import json
from itertools import chain
from pathlib import Path

import pytest
from apr_train.data.chunks import pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


class Plain:
    """tokenizers' own class with the methods that the data path calls."""

    def __init__(self, tokenizer):
        self.inner = tokenizer

    def encode_batch(self, texts):
        return [encoding.ids for encoding in self.inner.encode_batch(list(texts), add_special_tokens=False)]


QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(kind):
    from tokenizers import Regex

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt-2")
    if kind == "qwen2":
        split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
        byte_level = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator([Path(json.__file__).read_text()], trainer)
    return Plain(tokenizer)


TOKENIZERS = {kind: trained(kind) for kind in ("gpt-2", "qwen2", "no pre-tokenizer regex")}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_of_real_code_encode_like_the_whole(kind):
    text = Path(json.decoder.__file__).read_text() * 3
    tokenizer = TOKENIZERS[kind]
    parts = list(pieces(text, tokenizer, size=700))
    assert "".join(parts) == text
    assert len(parts) > 8
    assert list(chain.from_iterable(tokenizer.encode_batch(parts))) == tokenizer.encode_batch([text])[0]


@settings(deadline=None)
@given(st.text(alphabet=" \t\n\r\u00a0ab1(é\u0301'", max_size=120), st.sampled_from(sorted(TOKENIZERS)), st.integers(1, 20))
def test_pieces_of_any_text_encode_like_the_whole(text, kind, size):
    tokenizer = TOKENIZERS[kind]
    parts = list(pieces(text, tokenizer, size=size))
    assert "".join(parts) == text
    assert list(chain.from_iterable(tokenizer.encode_batch(parts))) == tokenizer.encode_batch([text])[0]


def test_a_cut_that_the_tokenizer_does_not_confirm_is_not_made():
    class WholeTextsOnly:
        def encode_batch(self, texts):
            return [[len(text)] for text in texts]

    text = "line\n" * 100
    assert list(pieces(text, WholeTextsOnly(), size=10)) == [text]


def test_a_text_without_newlines_stays_whole():
    text = "x" * 100
    assert list(pieces(text, TOKENIZERS["gpt-2"], size=10)) == [text]

"""Bytes behind tokens, text as it comes, and stop strings."""

import json

from apr_train.checkpoint.header import TokenizerSpec
from apr_train.data.tokenizer import build_tokenizer
from apr_train.inference.text import BYTE_OF, StopStrings, TextStream, bytes_of_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode


def streamed(tokenizer, ids):
    stream = TextStream(tokenizer)
    pieces = [stream.push(index) for index in ids]
    return pieces, stream.finish()


def test_the_alphabet_is_gpt2s():
    assert {byte: character for character, byte in BYTE_OF.items()} == bytes_to_unicode()
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())


@given(st.text(max_size=60))
def test_the_bytes_of_a_texts_tokens_are_the_texts(tokenizer, text):
    table = bytes_of_tokens(tokenizer)
    assert b"".join(table[index] for index in tokenizer.encode(text)) == text.encode()


def test_special_tokens_stand_for_no_text(tokenizer):
    table = bytes_of_tokens(tokenizer)
    assert [table[index] for index in range(5)] == [b""] * 5
    assert table[tokenizer.id("two words")] == b"two words"


@settings(max_examples=300)
@given(st.lists(st.integers(0, 330), max_size=40))
def test_pieces_add_up_to_the_whole_for_any_ids(tokenizer, ids):
    pieces, rest = streamed(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids, skip_special=True)


def test_half_a_character_waits_for_the_other_half(tokenizer):
    balloon = [tokenizer.id(next(c for c, b in BYTE_OF.items() if b == byte)) for byte in "🎈".encode()]
    assert streamed(tokenizer, balloon) == (["", "", "", "🎈"], "")
    assert streamed(tokenizer, balloon[:3]) == (["", "", ""], "\ufffd")
    assert streamed(tokenizer, [*balloon[:2], tokenizer.id("a")])[0] == ["", "", "\ufffda"]


CORPUS = ["def alpha(value):\n    return value + 1\n", " Größe → 数, naïve 🎈 hello  world don't do not . , ' x"] * 4


def unigram():
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    specials = ["<s>", "<unk>", "\ufffd"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=specials[:2], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens(specials[2:])
    return backend


def word_piece():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_fallback():
    """As Llama 2's: what has no token of its own is spelt in tokens of one byte."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["<s>", *fallback, "▁", "▁a", "b", "▁é", "数"]
    vocabulary = {token: index for index, token in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<s>"])
    return backend


def built(backend):
    content = json.loads(backend.to_str())
    return build_tokenizer(TokenizerSpec(json=content, special_ids={}, size=backend.get_vocab_size(), origin="made here"))


OTHERS = {"unigram": built(unigram()), "word piece": built(word_piece()), "byte fallback": built(byte_fallback())}


@settings(max_examples=300)
@given(st.sampled_from(["unigram", "word piece"]), st.lists(st.integers(0, 130), max_size=30))
def test_pieces_of_other_tokenizers_add_up_to_the_whole_for_any_ids(kind, ids):
    pieces, rest = streamed(OTHERS[kind], ids)
    assert "".join(pieces) + rest == OTHERS[kind].decode(ids, skip_special=True)
    assert bytes_of_tokens(OTHERS[kind]) is None


def spelt(text):
    """A text in tokens of one byte each."""
    return [1 + byte for byte in text]


@given(st.text("ab é数🎈\n", max_size=20))
def test_pieces_of_byte_fallback_add_up_for_any_text(text):
    pieces, rest = streamed(OTHERS["byte fallback"], spelt(text.encode()))
    assert ("".join(pieces), rest) == (text.removeprefix(" "), "")


@settings(max_examples=300)
@given(st.lists(st.integers(0, 262) | st.integers(257, 261), max_size=30))
def test_byte_fallback_over_bytes_that_are_no_text_loses_nothing_behind_them(ids):
    """The whole decode takes text back there, so that pieces cannot add up to it; what comes later still comes."""
    pieces, rest = streamed(OTHERS["byte fallback"], [*ids, 260, 261])
    assert ("".join(pieces) + rest).endswith("é数")


def test_what_byte_fallback_takes_back_stays_given():
    tokenizer, ids = OTHERS["byte fallback"], [*spelt(b"\n\xf0"), 258, 259]
    assert tokenizer.decode(ids) == "�� ab"
    assert streamed(tokenizer, ids) == (["\n", "", "� a", "b"], "")
    assert streamed(tokenizer, ids[:2]) == (["\n", ""], "�")


def stopped(pieces, stops):
    filter_ = StopStrings(stops)
    given_out = [filter_.push(piece) for piece in pieces]
    return given_out, filter_.finish(), filter_.found


def test_text_before_a_stop_string_is_given_and_nothing_after_it():
    assert stopped(["abc EN", "D def", "more"], ["END"]) == (["abc ", "", ""], "", "END")


def test_what_only_looks_like_a_stop_string_is_given_later():
    assert stopped(["abc EN", "OUGH", " E"], ["END"]) == (["abc ", "ENOUGH", " "], "E", None)


def test_the_first_of_several_stop_strings_counts():
    assert stopped(["one two three"], ["three", "two"]) == (["one "], "", "two")


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stopping_does_not_depend_on_how_the_text_is_cut(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    given_out, rest, found = stopped(pieces, stops)
    places = [text.find(stop) for stop in stops if stop in text]
    if found is None:
        assert not places
        assert "".join(given_out) + rest == text
    else:
        before = "".join(given_out)
        assert text.startswith(before + found)

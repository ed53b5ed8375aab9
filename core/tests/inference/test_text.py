"""Bytes behind tokens, text as it comes, and stop strings."""

from types import SimpleNamespace

from apr_train.inference.text import BYTE_OF, StopStrings, TextStream, bytes_of_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
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


class Words:
    """A tokenizer that does not work on bytes: words, and a first token whose text is not final."""

    def __init__(self):
        self.backend = SimpleNamespace(decoder=None)

    def decode(self, ids, *, skip_special=False):
        return "".join({0: " one", 1: "\ufffd", 2: " two"}[index] for index in ids).replace("\ufffd\ufffd", "é").lstrip()


def test_another_kind_of_tokenizer_streams_by_its_own_decoder():
    assert bytes_of_tokens(Words()) is None
    assert streamed(Words(), [0, 2, 1, 1, 2]) == (["one", " two", "", "é", " two"], "")
    assert streamed(Words(), [0, 1]) == (["one", ""], "\ufffd")


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

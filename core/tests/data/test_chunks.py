"""Chunks of a text against the whole text, as `tokenizers` itself encodes it."""

import json
from itertools import chain
from pathlib import Path

import pytest
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.checkpoint.pre_tokenizers import PRE_TOKENIZERS
from apr_train.data.chunks import chunks
from apr_train.data.documents import Document
from apr_train.data.tokenizer import build_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ADDED = [
    AddedToken("<|endoftext|>", special=True, normalized=False),
    AddedToken("<mask>", special=True, lstrip=True, rstrip=True, normalized=False),
    AddedToken("ab1", single_word=True, normalized=False),
    AddedToken("ÀÉ a", normalized=True),
]
CODE = Path(json.decoder.__file__).read_text()


def trained(pre_tokenizer=None, normalizer=None, *, model=None, trainer=None):
    backend = Tokenizer(model or models.BPE())
    backend.decoder = decoders.ByteLevel()
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainer or trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([CODE, "ÀÉ ab1 x11 don't 字，字 한글 a\u0301 12345 \r\n\n  \t " * 20], trainer)
    return backend


def built(backend):
    backend.add_tokens(ADDED)
    content = json.loads(backend.to_str())
    return build_tokenizer(TokenizerSpec(json=content, size=backend.get_vocab_size(), origin="made here"))


def of_type(name):
    """A tokenizer with the pre-tokenizer that the table of published ones has under that name."""
    cut = PRE_TOKENIZERS[name]
    content = json.loads(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str())
    content |= {"pre_tokenizer": cut.pre_tokenizer, "normalizer": cut.normalizer}
    content["model"]["ignore_merges"] = cut.ignore_merges
    return built(Tokenizer.from_str(json.dumps(content)))


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    return built(
        trained(pre_tokenizers.BertPreTokenizer(), normalizer, model=models.WordPiece(unk_token="[UNK]"), trainer=trainer)
    )


def unigram():
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    return built(trained(pre_tokenizers.Metaspace(), normalizers.NFKC(), model=models.Unigram(), trainer=trainer))


def without_words(scheme="first"):
    """Llama 2's way: a whole text is one word."""
    return built(trained(pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)))


WORDS = {
    **{name: of_type(name) for name in PRE_TOKENIZERS},
    "prefix space": built(trained(pre_tokenizers.ByteLevel(add_prefix_space=True))),
    "word piece": word_piece(),
    "unigram": unigram(),
}
NO_WORDS = {
    "no split": built(trained(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))),
    "metaspace": without_words(),
}
TEXT = st.text(alphabet=" \t\n\r\u00a0ab1(é\u0301'，字한<|>ÀÉ🎈", max_size=160) | st.lists(
    st.sampled_from(
        [
            "<|endoftext|>",
            "<mask>",
            " <mask> ",
            "ab1",
            "ÀÉ a",
            "a\u0301",
            "\u0301",
            "don't",
            " x",
            "\n",
            "\n\n",
            "  ",
            "12",
            ";",
            "字",
        ]
    ),
    max_size=40,
).map("".join)


def pieces_of(text, size):
    return [text[begin : begin + size] for begin in range(0, len(text), size)]


def whole(tokenizer, text, *, parse_special):
    """By the library's own class, which knows nothing of chunks."""
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.encode_special_tokens = not parse_special
    return backend.encode(text, add_special_tokens=False).ids


def joined(tokenizer, parts, *, parse_special):
    texts = [part.text for part in parts]
    return list(chain.from_iterable(tokenizer.encode_batch(texts, parse_special=parse_special)))


@settings(deadline=None, max_examples=400)
@given(TEXT, st.sampled_from(sorted(WORDS)), st.integers(4, 24), st.booleans())
@example("e\u0301" * 30, "qwen2", 4, True)
@example("a\r\nb\n\nc\n d " * 9, "gpt-2", 4, True)
@example("x <mask> y" * 9, "smollm", 5, True)
@example("1234567890" * 9 + "a", "llama-bpe", 7, False)
def test_chunks_encode_like_the_whole_wherever_words_end(text, kind, size, parse_special):
    tokenizer = WORDS[kind]
    parts = list(chunks(pieces_of(text, size), tokenizer, parse_special=parse_special, window=32, longest=1000))
    assert "".join(part.text for part in parts) == text
    assert not any(part.forced for part in parts)
    assert joined(tokenizer, parts, parse_special=parse_special) == whole(tokenizer, text, parse_special=parse_special)


SHAPES = {
    "lines": CODE * 3,
    "one line": " ".join(CODE.split()) * 3,
    "no white space": "".join(CODE.split()) * 3,
    "carriage returns": CODE.replace("\n", "\r\n") * 3,
    "blank lines": CODE.replace("\n", "\n\n") * 3,
    "chinese": "的一是不了，人我在有他。" * 3000,
}


SPACES_ONLY = {"prefix space", "unigram"}
"""Which put something in front of a text, so that only where a space is a cut changes nothing."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", WORDS)
def test_every_shape_of_text_has_places_to_cut(kind, shape):
    text, tokenizer = SHAPES[shape], WORDS[kind]
    parts = list(chunks(Document("x", text).pieces(2048), tokenizer, parse_special=False, longest=1000))
    if kind not in SPACES_ONLY or " " in text:
        assert max(len(part.text) for part in parts) < 3 * 2048
    assert not any(part.forced for part in parts)
    assert joined(tokenizer, parts, parse_special=False) == whole(tokenizer, text, parse_special=False)


@pytest.mark.parametrize("kind", NO_WORDS)
def test_a_tokenizer_to_which_a_text_is_one_word_is_given_it_whole_up_to_the_limit(kind):
    tokenizer = NO_WORDS[kind]
    (part,) = chunks(pieces_of(CODE[:9000], 1000), tokenizer, parse_special=False)
    assert (part.text, part.forced) == (CODE[:9000], False)


@pytest.mark.parametrize("text", ["x" * 5000, "=" * 5000, " " * 5000, CODE[:5000]])
def test_a_text_without_a_place_to_cut_is_cut_at_the_limit_and_marked(text):
    tokenizer = NO_WORDS["no split"] if text == CODE[:5000] else WORDS["gpt-2"]
    parts = list(chunks(pieces_of(text, 100), tokenizer, parse_special=False, longest=10))
    assert "".join(part.text for part in parts) == text
    assert [part.forced for part in parts] == [True] * (len(parts) - 1) + [False]
    assert max(len(part.text) for part in parts) <= 10 * 100
    ids, expected = joined(tokenizer, parts, parse_special=False), whole(tokenizer, text, parse_special=False)
    assert tokenizer.decode(ids) == text
    assert abs(len(ids) - len(expected)) < len(parts)


@settings(deadline=None)
@given(st.text(max_size=300), st.integers(4, 50))
def test_pieces_of_a_document_are_its_text_in_bounded_bytes(text, size):
    pieces = list(Document("x", text).pieces(size))
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= size for piece in pieces)

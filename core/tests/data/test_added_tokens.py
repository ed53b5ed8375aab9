"""Tokens that are added to a tokenizer: the file, what is refused, and the ids that transformers gives the same tokens."""

import json
import os

import pytest
from apr_train.checkpoint.header import AddedToken, TokenizerSpec
from apr_train.checkpoint.huggingface import tokenizer_of
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.checkpoint.tokenizer_metadata import spec_from_apr, spec_to_apr
from apr_train.data.added_tokens import MAX_BYTES, is_control, read_tokens, with_tokens
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import TokenizerError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken as TheirToken
from transformers import AutoTokenizer

TOKENS = ("<|fim_prefix|>", "<fim_suffix>", "<div>", "deoxyribose", "größe 1")
TEXT = "def f(x): return <div> <|fim_prefix|> deoxyribose größe 1<fim_suffix>x"


def bpe(*, holes=()):
    """A byte-level BPE with an end of text; `holes` are ids without a token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT] * 9, trainer)
    content = json.loads(backend.to_str())
    if holes:
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = {token: index + 5 * (index >= holes[0]) for token, index in vocabulary.items()}
    return content


def built(content):
    return build_tokenizer(spec_from_json(content, "tokenizer.json"))


def refused(function, *args):
    with pytest.raises(TokenizerError) as caught:
        function(*args)
    assert {finding.rule for finding in caught.value.findings} == {"TOKENS-001"}
    return [str(finding) for finding in caught.value.findings]


def written(folder, content):
    path = folder / "tokens.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_line_is_a_token_whatever_ends_it(tmp_path):
    assert read_tokens(written(tmp_path, "a b\n<|x|>\r\n\tü".replace("\t", ""))) == ("a b", "<|x|>", "ü")
    assert read_tokens(written(tmp_path, b"\xef\xbb\xbfone\ntwo\n")) == ("one", "two")


@pytest.mark.rule("TOKENS-001")
def test_a_file_that_is_none_of_tokens_is_refused_with_the_place(tmp_path):
    (told,) = refused(read_tokens, written(tmp_path, b"ok\n\xffbad\n"))
    assert "not UTF-8" in told
    assert "byte 0xff in line 2" in told
    assert "no token is in the file" in refused(read_tokens, written(tmp_path, ""))[0]
    assert "No such file" in refused(read_tokens, str(tmp_path / "absent"))[0]
    assert "found a folder" in refused(read_tokens, str(tmp_path))[0]
    os.mkfifo(tmp_path / "fifo")
    assert "found a named pipe" in refused(read_tokens, str(tmp_path / "fifo"))[0]
    assert "found a device" in refused(read_tokens, "/dev/zero")[0]
    assert "too large" in refused(read_tokens, written(tmp_path, b"a" * (MAX_BYTES + 1)))[0]


@pytest.mark.rule("TOKENS-001")
def test_every_bad_line_is_told_and_of_many_the_first(tmp_path):
    told = refused(read_tokens, written(tmp_path, "one\n\ntwo \none\n \n"))
    assert [line.split("[")[1].split("]")[0] for line in told] == ["line 2", "line 3", "line 4", "line 5"]
    assert "an empty line" in told[0]
    assert "a space at its end" in told[1]
    assert "as in line 1" in told[2]
    many = refused(read_tokens, written(tmp_path, "x\n" + "\n" * 100))
    assert len(many) == 21
    assert "80 more lines" in many[-1]


@pytest.mark.rule("TOKENS-001")
def test_a_token_that_is_there_already_is_refused_with_its_id():
    tokenizer = built(bpe())
    word = max((tokenizer.token(index) for index in range(257, tokenizer.size)), key=len).lstrip("Ġ")
    told = refused(with_tokens, tokenizer, ("new one", "<|endoftext|>", word, "x"), "t.txt")
    assert len(told) == 3
    assert "'<|endoftext|>', id 0" in told[0]
    assert f"{word!r}, id {tokenizer.id(word)}" in told[1]
    again = build_tokenizer(with_tokens(tokenizer, TOKENS, "t.txt"))
    assert len(refused(with_tokens, again, TOKENS, "t.txt")) == len(TOKENS)


@pytest.mark.rule("TOKENS-001")
def test_more_tokens_than_there_were_and_a_vocabulary_without_room_are_refused():
    tokenizer = built(bpe())
    (told,) = refused(with_tokens, tokenizer, [f"<|{number}|>" for number in range(tokenizer.size + 1)], "t.txt")
    assert f"at most {tokenizer.size}" in told
    assert f"{tokenizer.size + 1}" in told
    (told,) = refused(with_tokens, built(bpe(holes=(200,))), ("<|new|>",), "t.txt")
    assert "another id" in told
    assert "holes" in told


def test_what_is_spelt_as_a_control_token_is_one():
    assert [is_control(token) for token in TOKENS] == [True, True, False, False, False]
    assert is_control("<｜fim▁hole｜>")
    assert is_control("▁<PRE>")
    assert not is_control("<||>")
    assert not is_control("<|x")


def test_ids_and_encodings_are_those_of_transformers_with_the_same_tokens(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.add_tokens([TheirToken(token, special=is_control(token), normalized=not is_control(token)) for token in TOKENS])
    ours = build_tokenizer(with_tokens(build_tokenizer(tokenizer_of(tmp_path, {})), TOKENS, "t.txt"))
    assert ours.size == len(theirs)
    assert [ours.encode(token) for token in TOKENS] == [theirs.encode(token, add_special_tokens=False) for token in TOKENS]
    assert ours.encode(TEXT) == theirs.encode(TEXT, add_special_tokens=False)
    plain = "def f(x): return größe"
    assert ours.encode(plain) == built(bpe()).encode(plain)
    assert ours.decode(ours.encode(TEXT)) == theirs.decode(ours.encode(TEXT))


def test_text_spells_words_always_and_control_tokens_only_when_asked():
    ours = build_tokenizer(with_tokens(built(bpe()), TOKENS, "t.txt"))
    first = built(bpe()).size
    (ids,) = ours.encode_batch([TEXT])
    assert {first + 2, first + 3, first + 4} <= set(ids)
    assert not {first, first + 1} & set(ids)
    assert {first, first + 1} <= set(ours.encode_batch([TEXT], parse_special=True)[0])


@pytest.mark.parametrize("kind", ["json", "vocabulary"])
def test_they_go_through_apr_metadata_and_come_back(kind):
    content = bpe()
    base = built(content).spec
    if kind == "vocabulary":  # as of a GGUF, with rows of padding and a type for each token
        tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
        merges = tuple(" ".join(pair) for pair in content["model"]["merges"])
        end = (AddedToken(id=0, content="<|endoftext|>", special=True),)
        kept = {"tokenizer.token_type": [3, *[1] * (len(tokens) - 1), 5, 5]}
        base = TokenizerSpec(
            vocabulary=(*tokens, f"[PAD{len(tokens)}]", f"[PAD{len(tokens) + 1}]"),
            merges=merges,
            pre_type="gpt-2",
            added_tokens=end,
            size=len(tokens),
            kept=kept,
        )
    grown = with_tokens(build_tokenizer(base), TOKENS, "t.txt")
    assert grown.size == base.size + len(TOKENS)
    again = spec_from_apr("x.apr", spec_to_apr(grown))
    assert build_tokenizer(again).encode(TEXT) == build_tokenizer(grown).encode(TEXT)
    assert again.size == grown.size
    assert again.added_tokens[-5:] == grown.added_tokens[-5:]
    if kind == "vocabulary":
        assert spec_to_apr(grown)["tokenizer.token_type"] == [3, *[1] * (base.size - 1), 3, 3, 4, 4, 4]


def test_a_word_is_found_as_the_normalizer_spells_it():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "c": 3}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    ours = build_tokenizer(with_tokens(built(json.loads(backend.to_str())), ("Foo", "<|x|>"), "t.txt"))
    assert ours.encode("ab foo FOO c") == [1, 2, 4, 4, 3]


def test_transformers_own_list_of_added_tokens_gets_them(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe()))
    entry = {"content": "<|endoftext|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"0": {**entry, "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    spec = with_tokens(build_tokenizer(tokenizer_of(tmp_path, {})), TOKENS, "t.txt")
    listed = spec.companions["tokenizer_config.json"]["added_tokens_decoder"]
    assert list(listed) == ["0", *map(str, range(290, 295))]
    assert listed["290"] == {**entry, "content": TOKENS[0], "special": True}

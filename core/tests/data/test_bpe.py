import json
from pathlib import Path

import pytest
from apr_train.data.bpe import train_bpe
from apr_train.data.scan import scan_corpus
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import ConfigError, DataError
from apr_train.run.settings import DataSettings
from tokenizers import ByteLevelBPETokenizer
from tokenizers import Tokenizer as PlainTokenizer


@pytest.fixture
def settings():
    return DataSettings(data=(str(Path(json.__file__).parent),), validation_fraction=0.2)


def test_a_small_corpus_still_gives_exactly_the_wanted_size_and_says_so(corpus_folder, tmp_path, notices):
    settings = DataSettings(data=(str(corpus_folder),))
    spec = train_bpe(settings, 50_257, cache_dir=tmp_path, notice=notices.append)
    plain = PlainTokenizer.from_str(json.dumps(spec.json))
    assert spec.size == plain.get_vocab_size() == 50_257
    assert sorted(plain.get_vocab().values()) == list(range(50_257))
    assert spec.special_ids == {"eos": plain.token_to_id("<|endoftext|>")}
    assert len(notices) == 1
    assert "too small for a vocabulary of 50,257" in notices[0]
    (reserved,) = {token for token in plain.get_vocab() if token == "<|reserved_7|>"}
    assert plain.get_vocab()[reserved] not in plain.encode(f"a {reserved} b").ids  # what a text spells is text
    assert plain.decode(plain.encode(f"a {reserved} b").ids) == f"a {reserved} b"


@pytest.mark.parametrize("size", [257, 300, 777])
def test_a_large_enough_corpus_gives_exactly_the_wanted_size_silently(settings, tmp_path, notices, size):
    spec = train_bpe(settings, size, cache_dir=tmp_path, notice=notices.append)
    assert sorted(PlainTokenizer.from_str(json.dumps(spec.json)).get_vocab().values()) == list(range(size))
    assert notices == []


def test_merges_are_those_of_the_library_s_own_trainer_on_the_training_side(settings, tmp_path):
    spec = train_bpe(settings, 600, cache_dir=tmp_path)
    reference = ByteLevelBPETokenizer()
    texts = [document.text for document in scan_corpus(settings, notice=str).train()]
    reference.train_from_iterator(texts, vocab_size=600, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False)
    text = Path(json.decoder.__file__).read_text()
    tokenizer = build_tokenizer(spec)
    assert tokenizer.encode_batch([text])[0] == reference.encode(text).ids
    assert len(tokenizer.encode_batch([text])[0]) < len(text) / 2


def test_any_text_survives_there_and_back(settings, tmp_path):
    tokenizer = build_tokenizer(train_bpe(settings, 300, cache_dir=tmp_path))
    text = " größe\t\r\n  日本 \U0001f600\x00 "
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


def test_an_encoder_has_roberta_s_special_tokens_first(settings, tmp_path):
    spec = train_bpe(settings, 400, encoder=True, cache_dir=tmp_path)
    assert spec.special_ids == {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 4}
    tokenizer = build_tokenizer(spec)
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    assert [tokenizer.id(name) for name in names] == list(range(6))


def test_a_tokenizer_is_trained_once_and_its_file_is_the_same_every_time(settings, tmp_path, monkeypatch):
    first = train_bpe(settings, 400, cache_dir=tmp_path)
    again = train_bpe(settings, 400, cache_dir=tmp_path / "other")
    assert first.json == again.json
    monkeypatch.setattr("apr_train.data.bpe._train", None)
    assert train_bpe(settings, 400, cache_dir=tmp_path).json == first.json


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"model": {}}', "another"])
def test_a_damaged_cached_tokenizer_is_trained_again_with_a_notice(settings, tmp_path, notices, content):
    good = train_bpe(settings, 400, cache_dir=tmp_path)
    (path,) = (tmp_path / "tokenizers").iterdir()
    if content == "another":
        content = PlainTokenizer.from_str(json.dumps(train_bpe(settings, 300, cache_dir=tmp_path / "o").json)).to_str().encode()
    path.write_bytes(content)
    again = train_bpe(settings, 400, cache_dir=tmp_path, notice=notices.append)
    assert again.json == good.json
    assert len(notices) == 1
    assert "trained again" in notices[0]


def test_a_size_without_room_for_all_bytes_is_an_error(settings, tmp_path):
    with pytest.raises(ConfigError, match="at least 257"):
        train_bpe(settings, 256, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="at least 262"):
        train_bpe(settings, 261, encoder=True, cache_dir=tmp_path)


def test_what_a_killed_process_left_beside_the_tokenizers_is_cleared(settings, tmp_path):
    litter = tmp_path / "tokenizers" / ".another.json.0123456789ab.part"
    litter.parent.mkdir()
    litter.write_text("{")
    train_bpe(settings, 300, cache_dir=tmp_path)
    (path,) = litter.parent.iterdir()
    assert json.loads(path.read_text())["model"]["type"] == "BPE"


def test_a_cache_that_cannot_be_written_is_an_error(settings, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="APR_TRAIN_CACHE"):
        train_bpe(settings, 300, cache_dir=blocked)


def test_merges_are_learnt_of_a_text_without_the_end_of_a_word_too(tmp_path):
    (tmp_path / "dna.txt").write_text("gattaca" * 150_000)
    settings = DataSettings(data=(str(tmp_path / "dna.txt"),), validation_fraction=0.1)
    tokenizer = build_tokenizer(train_bpe(settings, 262, cache_dir=tmp_path))
    assert len(tokenizer.encode("gattaca" * 100)) < 300

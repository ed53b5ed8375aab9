"""Sources of token ids: other programs' shards, split by document and learnt as they are."""

import numpy as np
import pytest
from apr_train.data.corpus import load_corpus
from apr_train.data.look import look_at
from apr_train.data.shards import write_shard
from apr_train.errors import DataError
from apr_train.run.settings import DataSettings

EOS = 258


@pytest.fixture
def documents():
    draw = np.random.default_rng(3)
    return [draw.integers(0, 256, int(size)).tolist() for size in draw.integers(20, 60, 50)]


@pytest.fixture
def shard(tmp_path, documents):
    """As nanoGPT writes it: the ids alone, an end of text behind each document."""
    path = tmp_path / "train.bin"
    np.array([token for ids in documents for token in (*ids, EOS)], "<u2").tofile(path)
    return path


def documents_of(tokens):
    stops = [*tokens.starts[1:].tolist(), len(tokens)]
    return [tokens.ids[begin:end].tolist() for begin, end in zip(tokens.starts.tolist(), stops, strict=True)]


def load(path, tokenizer, tmp_path, **settings):
    return load_corpus(DataSettings(data=(str(path),), **settings), tokenizer, cache_dir=tmp_path / "cache")


def test_documents_are_those_of_the_shard_each_on_one_side(shard, documents, tokenizer, tmp_path):
    corpus = load(shard, tokenizer, tmp_path, validation_fraction=0.2)
    learnt, held = documents_of(corpus.train), documents_of(corpus.validation)
    assert sorted([*learnt, *held]) == sorted([*ids, EOS] for ids in documents)
    assert learnt == [[*ids, EOS] for ids in documents if [*ids, EOS] in learnt]
    assert 0.1 < sum(map(len, held)) / sum(map(len, [*learnt, *held])) < 0.3
    assert tokenizer.calls == 0


def test_the_form_of_the_file_decides_nothing(shard, documents, tokenizer, tmp_path):
    path = tmp_path / "llm.bin"
    write_shard(path, ([EOS, *ids] for ids in documents), id_bytes=2)
    assert load(path, tokenizer, tmp_path).hash == load(shard, tokenizer, tmp_path).hash


def test_a_copy_of_a_held_out_document_is_not_learnt(documents, tokenizer, tmp_path):
    path = tmp_path / "twice.bin"
    np.array([token for ids in [*documents, *documents] for token in (*ids, EOS)], "<u2").tofile(path)
    corpus = load(path, tokenizer, tmp_path, validation_fraction=0.2)
    learnt, held = documents_of(corpus.train), documents_of(corpus.validation)
    assert not {tuple(ids) for ids in learnt} & {tuple(ids) for ids in held}
    assert corpus.learnt[0].scan.left_out == len(held)


def test_a_single_document_gives_its_end(tokenizer, tmp_path):
    path = tmp_path / "one.bin"
    np.arange(200, dtype="<u2").tofile(path)
    corpus = load(path, tokenizer, tmp_path, validation_fraction=0.1)
    assert documents_of(corpus.train) == [[*range(180), EOS]]
    assert documents_of(corpus.validation) == [[*range(180, 200), EOS]]


def test_an_id_that_the_tokenizer_does_not_have_is_named(tokenizer, tmp_path):
    path = tmp_path / "large.bin"
    np.array([1, 2, 300, 4], "<u2").tofile(path)
    with pytest.raises(DataError, match="an id that the tokenizer does not have, expected 0 to 260, found 300") as caught:
        load(path, tokenizer, tmp_path)
    assert (caught.value.finding.subject, caught.value.finding.field) == (str(path), "id 2")


@pytest.mark.rule("PREFLIGHT-025")
def test_a_look_sees_that_a_file_is_no_shard(tmp_path, shard):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"PK\x03\x04" + b"\0" * 60)
    found = look_at(DataSettings(data=(f"a={shard}:1", f"b={path}:1")))
    (finding,) = found.findings
    assert (finding.rule, finding.subject, finding.problem) == ("PREFLIGHT-025", str(path), "no token shard")
    assert look_at(DataSettings(data=(str(shard),))).findings == ()

import fcntl
import itertools
import json
import os
import pwd
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from apr_train.data.bpe import train_bpe
from apr_train.data.cache import cache_folder
from apr_train.data.corpus import EncodingWanted, held_out_documents, load_corpus
from apr_train.data.documents import read_documents
from apr_train.data.formats.utf8 import decoded
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.scan import scan_corpus
from apr_train.data.sources import find_files
from apr_train.data.special_tokens import DocumentEnds
from apr_train.data.split import split_key
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import DataError, TokenizerError
from apr_train.run.settings import DataSettings
from tokenizers import Tokenizer as PlainTokenizer

EOS = 258


def documents_of(tokens):
    edges = [*tokens.starts.tolist(), len(tokens)]
    return [tokens.ids[begin:end].tolist() for begin, end in itertools.pairwise(edges)]


@pytest.fixture
def settings(corpus_folder):
    return DataSettings(data=(str(corpus_folder),), validation_fraction=0.2)


def test_every_document_is_on_one_side_and_ends_with_the_separator(settings, tokenizer, tmp_path, corpus_folder):
    corpus = load_corpus(settings, tokenizer, cache_dir=tmp_path)
    texts = [path.read_bytes() for path in corpus_folder.rglob("*.py")]
    train, validation = documents_of(corpus.train), documents_of(corpus.validation)
    assert sorted(bytes(document[:-1]) for document in train + validation) == sorted(texts)
    assert {document[-1] for document in train + validation} == {EOS}
    assert 2 <= len(validation) <= 16
    assert corpus.train.text_bytes + corpus.validation.text_bytes == sum(map(len, texts))
    assert corpus.bytes_per_token == corpus.validation.text_bytes / len(corpus.validation)
    assert corpus.max_token_id == EOS


def test_held_out_documents_are_the_validation_side_in_its_order(settings, tokenizer, tmp_path):
    corpus = load_corpus(settings, tokenizer, cache_dir=tmp_path)
    held_out = held_out_documents(settings)
    assert [document.text.encode() for document in held_out] == [bytes(d[:-1]) for d in documents_of(corpus.validation)]
    assert [split_key(document.text) for document in held_out] == sorted(split_key(document.text) for document in held_out)


def test_a_corpus_is_tokenised_once(settings, byte_tokenizer, tmp_path):
    progress = []
    first, second = byte_tokenizer(), byte_tokenizer()
    made = load_corpus(settings, first, cache_dir=tmp_path, progress=lambda *seen: progress.append(seen))
    found = load_corpus(settings, second, cache_dir=tmp_path)
    assert (first.calls > 0, second.calls) == (True, 0)
    assert np.array_equal(made.train.ids, found.train.ids)
    assert progress[-1] == ("tokenise", progress[-1][2], progress[-1][2])
    assert progress[-1][2] == made.train.text_bytes + made.validation.text_bytes


@pytest.mark.parametrize("change", ["text", "fraction", "tokenizer", "special tokens", "start", "end"])
def test_a_change_of_text_split_or_tokenizer_is_another_cache_entry(
    change, settings, byte_tokenizer, tmp_path, corpus_folder, monkeypatch
):
    load_corpus(settings, byte_tokenizer(), cache_dir=tmp_path)
    if change == "text":
        (corpus_folder / "module_00.py").write_text("changed = True\n")
    if change == "fraction":
        settings = DataSettings(data=settings.data, validation_fraction=0.4)
    if change == "special tokens":
        settings = DataSettings(data=settings.data, validation_fraction=0.2, parse_special=True)
    tokenizer = byte_tokenizer(bytes_first=3 if change == "tokenizer" else 0)
    ends = DocumentEnds(start=(256,) if change == "start" else (), end=257 if change == "end" else EOS)
    monkeypatch.setattr("apr_train.data.objectives.causal_lm.decoder_ends", lambda _: ends)
    load_corpus(settings, tokenizer, cache_dir=tmp_path)
    assert tokenizer.calls > 0


def test_the_hash_is_of_the_texts_and_not_of_their_place(settings, tokenizer, tmp_path, corpus_folder):
    before = load_corpus(settings, tokenizer, cache_dir=tmp_path)
    moved = corpus_folder.rename(tmp_path / "elsewhere")
    after = load_corpus(DataSettings(data=(str(moved),), validation_fraction=0.2), tokenizer, cache_dir=tmp_path)
    assert (before.hash, before.train.key) == (after.hash, after.train.key)


def test_ids_take_two_bytes_below_65_536_tokens_and_four_above(settings, byte_tokenizer, tmp_path):
    assert load_corpus(settings, byte_tokenizer(), cache_dir=tmp_path).train.ids.dtype == np.uint16
    large = load_corpus(settings, byte_tokenizer(bytes_first=70_000), cache_dir=tmp_path)
    assert large.train.ids.dtype == np.uint32
    assert large.max_token_id == 70_258


def truncate(raw):
    return raw[:-5]


def flip_a_bit(raw):
    raw[len(raw) // 2] ^= 4
    return raw


def flip_a_bit_of_the_largest_id(raw):
    raw[32] ^= 1
    return raw


def flip_a_bit_of_the_key(raw):
    raw[50] ^= 1
    return raw


def lie_about_the_version(raw):
    raw[8] = 9
    return raw


def lie_about_the_length(raw):
    raw[16:24] = b"\xff" * 8
    return raw


def empty(raw):
    return b""


def zero(raw):
    return bytes(len(raw))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        flip_a_bit_of_the_largest_id,
        flip_a_bit_of_the_key,
        lie_about_the_version,
        lie_about_the_length,
        empty,
        zero,
    ],
)
def test_a_damaged_cache_is_made_again_with_a_notice(damage, settings, byte_tokenizer, tmp_path, notices):
    good = load_corpus(settings, byte_tokenizer(), cache_dir=tmp_path).train
    whole = good.path.read_bytes()
    good.path.unlink()
    good.path.write_bytes(damage(bytearray(whole)))
    tokenizer = byte_tokenizer()
    again = load_corpus(settings, tokenizer, cache_dir=tmp_path, notice=notices.append)
    assert tokenizer.calls > 0
    assert again.train.path.read_bytes() == whole
    assert len(notices) == 1
    assert "damaged" in notices[0]


def test_a_tokenisation_that_fails_leaves_nothing_behind(settings, tokenizer, tmp_path):
    tokenizer.size = 100
    with pytest.raises(TokenizerError, match="outside its own vocabulary"):
        load_corpus(settings, tokenizer, cache_dir=tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_corpus_that_changes_while_it_is_read_is_an_error(settings, byte_tokenizer, tmp_path, corpus_folder):
    class Meddling(byte_tokenizer):
        def id(self, token):
            (corpus_folder / "sub" / "module_39.py").write_text("changed = True\n")  # after the scan, before the encoding
            return super().id(token)

    with pytest.raises(DataError, match="changed while"):
        load_corpus(settings, Meddling(), cache_dir=tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_corpus_is_read_twice_to_be_tokenised_and_once_when_it_was(settings, tokenizer, tmp_path, corpus_folder, monkeypatch):
    opened = []

    def counting(files, *how, **options):
        chosen = list(files)
        opened.extend(chosen)
        return read_documents(chosen, *how, **options)

    monkeypatch.setattr("apr_train.data.reading.read_documents", counting)
    load_corpus(settings, tokenizer, cache_dir=tmp_path)
    assert Counter(opened) == dict.fromkeys(corpus_folder.rglob("*.py"), 2)
    load_corpus(settings, tokenizer, cache_dir=tmp_path)
    assert Counter(opened) == dict.fromkeys(corpus_folder.rglob("*.py"), 3)


def test_reading_is_told_in_bytes_of_the_files_and_not_too_often(corpus_folder):
    line = json.dumps({"text": "word " * 1000, "id": 3}) + "\n"
    (corpus_folder / "large.jsonl").write_text(line * 1000)
    total = sum(path.stat().st_size for path in corpus_folder.rglob("*.*"))
    seen = []
    scan_corpus(DataSettings(data=(str(corpus_folder),)), notice=str, progress=lambda *told: seen.append(told))
    assert {(stage, whole) for stage, _, whole in seen} == {("read", total)}
    done = [count for _, count, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == total
    assert total >> 20 <= len(done) <= 2 + (total >> 20)


def test_a_text_that_is_not_utf8_is_left_out_of_a_folder_with_one_notice(settings, tokenizer, tmp_path, corpus_folder, notices):
    clean = load_corpus(settings, tokenizer, cache_dir=tmp_path)
    for number in range(5):
        (corpus_folder / f"latin_{number}.py").write_bytes(b"name = 'caf\xe9'\n")
    corpus = load_corpus(settings, tokenizer, cache_dir=tmp_path, notice=notices.append)
    assert (corpus.hash, corpus.train.key) == (clean.hash, clean.train.key)
    names = ", ".join(str(corpus_folder / f"latin_{number}.py") for number in range(3))
    assert notices == [f"files left out because they are not UTF-8: 5 ({names}, …)"]
    tokens = load_corpus(settings, tokenizer, cache_dir=tmp_path / "other").train.ids
    assert np.array_equal(tokens, clean.train.ids)


@pytest.mark.parametrize("name", ["named.py", "lines.jsonl"])
def test_what_is_not_utf8_is_an_error_in_a_named_file_and_in_jsonl(settings, tokenizer, tmp_path, corpus_folder, name):
    path = corpus_folder / name
    path.write_bytes(b'{"text": "caf\xe9"}\n')
    if name == "named.py":
        settings = DataSettings(data=(*settings.data, str(corpus_folder / "sub" / ".." / name)))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        load_corpus(settings, tokenizer, cache_dir=tmp_path)
    assert caught.value.finding.where == f"{path}:1"


def test_a_corpus_of_nothing_but_other_encodings_is_an_error(tokenizer, tmp_path, notices):
    folder = tmp_path / "latin"
    folder.mkdir()
    (folder / "a.py").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="empty"):
        load_corpus(DataSettings(data=(str(folder),)), tokenizer, cache_dir=tmp_path, notice=notices.append)
    assert len(notices) == 1


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_variable(settings, tokenizer, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(DataError, match="APR_TRAIN_CACHE"):
        load_corpus(settings, tokenizer, cache_dir=blocked)


def test_the_cache_folder_follows_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("APR_TRAIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("APR_TRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "apr-train"


def test_without_a_home_folder_the_cache_is_where_a_variable_says_or_a_message_names_it(monkeypatch, tmp_path):
    """A container run under a number that no passwd file has."""

    def nobody(number):
        raise KeyError(number)

    for name in ("APR_TRAIN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(DataError, match="APR_TRAIN_CACHE: there is no home folder"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "apr-train"
    monkeypatch.setenv("APR_TRAIN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_tokenizer_without_end_of_text_is_refused(settings, tokenizer, tmp_path):
    tokenizer.special_ids = {"bos": 256}
    with pytest.raises(TokenizerError, match="no eos token") as caught:
        load_corpus(settings, tokenizer, cache_dir=tmp_path)
    for word in ("<|endoftext|>", "--tokenizer", "tokenizer_config.json"):
        assert word in str(caught.value)


def test_end_of_text_separates_even_when_eos_ends_a_turn(settings, tokenizer, tmp_path):
    tokenizer.id = {"<|endoftext|>": 257}.get
    tokenizer.special_tokens = {"<|endoftext|>": 257}
    corpus = load_corpus(settings, tokenizer, cache_dir=tmp_path)
    assert {document[-1] for document in documents_of(corpus.train)} == {257}


def test_a_corpus_of_one_long_file_is_encoded_in_chunks_like_the_whole(tmp_path, notices):
    path = tmp_path / "all.txt"
    files = find_files((), notice=notices.append)[:60]
    path.write_text("".join(document.text for document in read_documents(files)))
    settings = DataSettings(data=(str(path),), validation_fraction=0.1)
    tokenizer = build_tokenizer(train_bpe(settings, 1000, cache_dir=tmp_path, notice=notices.append))
    corpus = load_corpus(settings, tokenizer, cache_dir=tmp_path, notice=notices.append)
    whole = path.read_text()
    plain = PlainTokenizer.from_str(json.dumps(tokenizer.spec.json))
    tail = held_out_documents(settings)[0].text
    head = whole.removesuffix(tail)
    assert len(head) > 600_000
    assert corpus.train.ids.tolist() == [*plain.encode(head).ids, 0]
    assert corpus.validation.ids.tolist() == [*plain.encode(tail).ids, 0]
    assert any("single text" in line for line in notices)


def test_the_standard_library_encodes_as_the_plain_tokenizer_does(tmp_path, notices):
    files = [str(path) for path in find_files((), notice=notices.append) if path.parent.name in ("json", "logging")]
    settings = DataSettings(data=tuple(files), validation_fraction=0.2)
    tokenizer = build_tokenizer(train_bpe(settings, 600, cache_dir=tmp_path, notice=notices.append))
    plain = PlainTokenizer.from_str(json.dumps(tokenizer.spec.json))
    corpus = load_corpus(settings, tokenizer, cache_dir=tmp_path, notice=notices.append)
    texts = {split_key(document.text): document.text for document in read_documents(map(Path, files))}
    held = {split_key(document.text) for document in held_out_documents(settings)}
    expected = [[*plain.encode(text).ids, 0] for key, text in texts.items() if key not in held]
    assert documents_of(corpus.train) == expected


def test_each_document_begins_as_the_tokenizer_begins_a_text(settings, tokenizer, tmp_path):
    tokenizer.start_ids = (256,)
    corpus = load_corpus(settings, tokenizer, cache_dir=tmp_path)
    documents = documents_of(corpus.train) + documents_of(corpus.validation)
    assert {(document[0], document[-1]) for document in documents} == {(256, EOS)}
    assert all(256 not in document[1:] for document in documents)


def test_the_tokens_of_a_corpus_are_the_same_however_its_documents_are_cut(tmp_path, monkeypatch):
    folder = tmp_path / "text"
    folder.mkdir()
    for number, path in enumerate(sorted(Path(json.__file__).parent.glob("*.py"))):
        text = path.read_text()
        (folder / f"{number}.txt").write_text([text, " ".join(text.split()), text.replace("\n", "\r\n")][number % 3] * 9)
    settings = DataSettings(data=(str(folder),), validation_fraction=0.2)
    tokenizer = build_tokenizer(train_bpe(settings, 600, cache_dir=tmp_path))
    found = []
    for size in (1 << 30, 1 << 16, 3000):
        monkeypatch.setattr(
            "apr_train.data.documents.Document.pieces", lambda self, size=size: map(itemgetter(1), decoded(self.utf8, size))
        )
        corpus = load_corpus(settings, tokenizer, cache_dir=tmp_path / str(size))
        assert "forced_cuts" not in corpus.train.counts | corpus.validation.counts
        found.append((corpus.train.path.read_bytes(), corpus.validation.path.read_bytes()))
    assert found[0] == found[1] == found[2]


@pytest.fixture
def spelling(corpus_folder, tokenizer, monkeypatch):
    """A tokenizer of bytes to which `<|end|>` is a special token, and a corpus that spells it three times."""
    tokenizer.special_tokens = {"<|end|>": 258}
    plain = tokenizer.encode_batch

    def encode_batch(texts, *, parse_special=True):
        return plain([text.replace("<|end|>", "\0") if parse_special else text for text in texts])

    monkeypatch.setattr(tokenizer, "encode_batch", encode_batch)
    (corpus_folder / "module_00.py").write_text('EOS = "<|end|>"\n' * 2)
    (corpus_folder / "module_01.py").write_text('END = "<|end|>" # <|end\n')
    return tokenizer


@pytest.mark.rule("PREFLIGHT-023")
@pytest.mark.parametrize(("parse_special", "word"), [(False, "text"), (True, "control tokens")])
def test_text_that_spells_special_tokens_is_counted_each_time(settings, spelling, tmp_path, notices, parse_special, word):
    settings = DataSettings(data=settings.data, validation_fraction=0.2, parse_special=parse_special)
    for _ in range(2):  # made, and found in the cache
        corpus = load_corpus(settings, spelling, cache_dir=tmp_path, notice=notices.append)
    assert notices[0] == notices[1]
    assert len(notices) == 2
    assert notices[0].startswith("warning: PREFLIGHT-023: --data: the text spells special tokens of the tokenizer")
    assert f"found 3 of them, learnt as {word}." in notices[0]
    assert "--parse-special" in notices[0]
    ids = corpus.train.ids.tolist() + corpus.validation.ids.tolist()
    assert ids.count(0) == (3 if parse_special else 0)


@pytest.mark.rule("PREFLIGHT-027")
def test_a_text_without_the_end_of_a_word_is_cut_and_that_is_said(tokenizer, tmp_path, notices):
    (tmp_path / "text").write_bytes(b"x" * (7 << 19))
    tokenizer.boundary = lambda left, right, **_: "token"
    corpus = load_corpus(DataSettings(data=(str(tmp_path / "text"),)), tokenizer, cache_dir=tmp_path, notice=notices.append)
    assert corpus.train.counts["forced_cuts"] == 3
    assert set(corpus.train.ids[:-1].tolist()) == {ord("x")}
    assert len(corpus.train) + len(corpus.validation) == (7 << 19) + 2
    assert "warning: PREFLIGHT-027: --data: " in notices[-1]
    assert "found 3 cuts" in notices[-1]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import ByteTokenizer
from apr_train.data.corpus import load_corpus
from apr_train.run.settings import DataSettings
corpus = load_corpus(DataSettings(data=(sys.argv[2],)), ByteTokenizer(), cache_dir=Path(sys.argv[3]))
print(corpus.train.key, int(corpus.train.ids.astype("u8").sum()), "torch" in sys.modules)
"""


def test_processes_that_tokenise_at_the_same_time_all_get_the_whole(corpus_folder, tmp_path):
    for number in range(40):
        path = corpus_folder / f"large_{number}.py"
        path.write_text(f"value_{number} = {number}\n" * 5000)
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(corpus_folder), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

    def run(_):
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    assert [result.stderr for result in results] == [""] * 4
    assert len({result.stdout for result in results}) == 1
    assert results[0].stdout.endswith(" False\n")
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2


KILLED = """
import os
import pwd
import signal
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import ByteTokenizer
from apr_train.data.corpus import load_corpus
from apr_train.run.settings import DataSettings
class Killed(ByteTokenizer):
    def encode_batch(self, texts, *, parse_special=True):
        os.kill(os.getpid(), signal.SIGKILL)
load_corpus(DataSettings(data=(sys.argv[2],)), Killed(), cache_dir=Path(sys.argv[3]))
"""


def test_what_a_killed_process_left_is_cleared_when_any_other_corpus_is_tokenised(settings, byte_tokenizer, tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), settings.data[0], str(tmp_path)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    (litter,) = (tmp_path / "tokens").iterdir()
    live = litter.with_name(".another.tokens.0123.part")
    with live.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        corpus = load_corpus(settings, byte_tokenizer(bytes_first=3), cache_dir=tmp_path)
        assert set((tmp_path / "tokens").iterdir()) == {live, corpus.train.path, corpus.validation.path}


@pytest.fixture
def two(corpus_folder, tmp_path):
    """A second folder, in which half of the modules of the first are there, too, with other line ends."""
    other = tmp_path / "other"
    other.mkdir()
    for place, path in enumerate(sorted(corpus_folder.rglob("*.py"))):
        text = path.read_text()
        name = other / f"copy_{place}.py"
        name.write_text(
            text.replace("\n", "\r\n") if place % 2 else f"other_{place} = 'only here, and {place} more words'\n" * 3
        )
    return DataSettings(data=(f"one={corpus_folder}:1", f"two={other}:1"), validation_fraction=0.2)


def test_what_one_source_holds_out_is_learnt_from_none(two, tokenizer, tmp_path, notices):
    corpus = load_corpus(two, tokenizer, cache_dir=tmp_path / "cache", notice=notices.append)
    learnt, held = (
        [split_key(bytes(ids[:-1]).decode()) for part in parts for ids in documents_of(part.tokens)]
        for parts in (corpus.learnt, corpus.held_out)
    )
    assert not set(learnt) & set(held)
    assert [part.name for part in (*corpus.learnt, *corpus.held_out)] == ["one", "two", "one", "two"]
    missing = {part.name: part.scan.left_elsewhere for part in corpus.learnt}
    assert sum(missing.values()) > 0
    sides = zip(corpus.learnt, corpus.held_out, strict=True)
    told = {a.name: len(a.tokens.starts) + len(b.tokens.starts) + a.scan.left_elsewhere for a, b in sides}
    assert told == {"one": 40, "two": 40}
    for name, number in missing.items():
        line = f"source {name}: not learnt, for their text is held out in another source: {number} documents"
        assert (line in notices) == (number > 0)


def test_a_source_is_tokenised_once_whatever_mixture_it_is_in(two, byte_tokenizer, tmp_path, corpus_folder):
    (only,) = (argument for argument in two.data if argument.startswith("two"))
    load_corpus(DataSettings(data=(str(corpus_folder),), validation_fraction=0.2), byte_tokenizer(), cache_dir=tmp_path)
    load_corpus(DataSettings(data=(only,), validation_fraction=0.2), byte_tokenizer(), cache_dir=tmp_path)
    before = set((tmp_path / "tokens").iterdir())
    corpus = load_corpus(two, byte_tokenizer(), cache_dir=tmp_path)
    made = set((tmp_path / "tokens").iterdir()) - before
    expected = {part.tokens.path for part in corpus.learnt if part.scan.elsewhere}
    assert made == expected


def test_the_hash_of_a_mixture_is_of_its_texts_and_names(two, tokenizer, tmp_path):
    def hash_of(*data):
        return load_corpus(DataSettings(data=data, validation_fraction=0.2), tokenizer, cache_dir=tmp_path / "cache").hash

    one, other = two.data
    hashes = {hash_of(one, other), hash_of(other, one), hash_of(one), hash_of(one[4:-2]), hash_of(f"x{one}", other)}
    assert len(hashes) == 5
    assert hash_of(f"{one[:-2]}:3", f"{other[:-2]}:1") in hashes  # weights are no text


def test_a_held_out_set_of_ones_own_is_all_that_is_held_out(two, corpus_folder, tokenizer, tmp_path, notices):
    other = two.data[1][4:-2]
    settings = DataSettings(data=(str(corpus_folder),), val_data=(other,))
    corpus = load_corpus(settings, tokenizer, cache_dir=tmp_path / "cache", notice=notices.append)
    learnt, held = ([bytes(ids[:-1]) for ids in documents_of(side)] for side in (corpus.train, corpus.validation))
    assert sorted(held) == sorted(path.read_bytes() for path in Path(other).iterdir())
    assert len(learnt) == 20
    assert notices == ["not learnt, for their text is held out in --val-data: 20 documents"]
    assert not {split_key(text.decode()) for text in learnt} & {split_key(text.decode()) for text in held}
    again = load_corpus(
        settings,
        tokenizer,
        objective=OBJECTIVES["causal-lm"],
        options=EncodingWanted(),
        cache_dir=tmp_path / "cache",
        notice=str,
        learn=False,
    )
    assert again.validation.path == corpus.validation.path
    assert again.learnt == ()


def test_nothing_that_is_left_to_learn_is_an_error_that_names_the_source(corpus_folder, tokenizer, tmp_path):
    settings = DataSettings(data=(f"a={corpus_folder}",), val_data=(str(corpus_folder),))
    with pytest.raises(DataError, match="nothing is left to learn") as caught:
        load_corpus(settings, tokenizer, cache_dir=tmp_path / "cache")
    assert caught.value.finding.where == "--data [a]"
    assert caught.value.finding.found == "40 texts that are held out in --val-data"

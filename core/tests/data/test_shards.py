"""Token shards, against bytes as nanoGPT and llm.c write them."""

import io
import pickle
import struct

import numpy as np
import pytest
import torch
from apr_train.data.shards import is_shard, shard_documents, write_shard
from apr_train.data.sources import find_files
from apr_train.errors import DataError

END = 50256
SIZE = 50257


def documents(path, *, size=SIZE, end=END, notice=None):
    return [ids.tolist() for ids in shard_documents(path, size=size, end=end, notice=notice)]


def of_llm_c(ids, *, form="H", magic=20240520, version=1, count=None):
    """As dev/data/data_common.py writes it: 256 int32, of which three say something, then the ids."""
    header = struct.pack("<3i", magic, version, len(ids) if count is None else count) + bytes(253 * 4)
    return header + struct.pack(f"<{len(ids)}{form}", *ids)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        # nanoGPT: "Hello world" and "Hi" in GPT-2's ids, 50256 (0xc450) behind each
        (bytes.fromhex("7f39 9503 50c4 8347 50c4"), [[14719, 917], [18307]]),
        (bytes.fromhex("7f39 9503 50c4 8347"), [[14719, 917], [18307]]),
        # fineweb.py of llm.c: 50256 in front of each
        (of_llm_c([END, 14719, 917, END, 18307]), [[14719, 917], [18307]]),
        (of_llm_c([5, END, END, 6]), [[5], [6]]),
        (of_llm_c([END, 70, END, 71], form="I", magic=20240801, version=7), [[70], [71]]),
    ],
)
def test_documents_are_what_lies_between_ends_of_text_wherever_these_stand(tmp_path, raw, expected):
    path = tmp_path / "train.bin"
    path.write_bytes(raw)
    assert is_shard(path)
    assert documents(path) == expected


def test_ids_of_32_bits_go_with_a_large_tokenizer_and_ids_of_16_without_a_header_do_not(tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(of_llm_c([151_000, 3, 151_643], form="I", magic=20240801, version=7))
    assert documents(path, size=151_936, end=151_643) == [[151_000, 3]]
    path.write_bytes(struct.pack("<4H", 1, 2, 3, 4))
    with pytest.raises(DataError, match="16 bits"):
        documents(path, size=151_936, end=151_643)


def test_documents_are_views_of_the_file_across_the_chunks_that_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("apr_train.data.shards._CHUNK", 3)
    path = tmp_path / "train.bin"
    path.write_bytes(struct.pack("<11H", *range(7), END, 8, 9, END))
    found = list(shard_documents(path, size=SIZE, end=END))
    assert [ids.tolist() for ids in found] == [list(range(7)), [8, 9]]
    assert all(not ids.flags.owndata and not ids.flags.writeable for ids in found)


@pytest.mark.rule("PREFLIGHT-025")
def test_the_first_id_that_the_tokenizer_does_not_have_is_named_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("apr_train.data.shards._CHUNK", 3)
    path = tmp_path / "train.bin"
    path.write_bytes(struct.pack("<8H", 1, 2, 3, 4, 5, 300, 301, 6))
    with pytest.raises(DataError) as caught:
        documents(path, size=300, end=0)
    finding = caught.value.finding
    assert (finding.rule, finding.where, finding.found) == ("PREFLIGHT-025", f"{path} [id 5]", "300")


def test_a_shard_without_an_end_of_text_is_one_document_with_a_notice(tmp_path, notices):
    path = tmp_path / "train.bin"
    path.write_bytes(struct.pack("<3H", 1, 2, 3))
    assert documents(path, notice=notices.append) == [[1, 2, 3]]
    (notice,) = notices
    assert "one document of 3 tokens" in notice
    path.write_bytes(struct.pack("<3H", 1, END, 3))
    documents(path, notice=notices.append)
    assert len(notices) == 1


def saved_by_torch(*, zipped):
    target = io.BytesIO()
    torch.save({"text": torch.zeros(3)}, target, _use_new_zipfile_serialization=zipped)
    return target.getvalue()


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (saved_by_torch(zipped=True), "zip"),
        (saved_by_torch(zipped=False), "pickle"),
        (pickle.dumps([1, 2, 3]), "pickle"),
        (pickle.dumps({"a": [1, 2, 3]}, protocol=2), "pickle"),
        (b"GGUF\3\0\0\0" + bytes(40), "GGUF"),
        (struct.pack("<Q", 40) + b'{"a":{}}' + bytes(40), "safetensors"),
        (of_llm_c([1, 2, 3], magic=20240522), "evaluate"),
        (of_llm_c([1, 2, 3], version=2), "version"),
        (of_llm_c([1, 2, 3], count=4), "4 ids"),
        (of_llm_c([1, 2, 3], count=-1), "-1 ids"),
        (of_llm_c([1, 2, 3])[:-1], "3 ids"),
        (of_llm_c([1, 2, 3])[:40], "3 ids"),
        (of_llm_c([]), "at least one"),
        (b"", "0 bytes"),
        (b"\1\0\2", "3 bytes"),
    ],
)
def test_what_is_no_shard_or_not_whole_is_refused(tmp_path, raw, word):
    path = tmp_path / "a.bin"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        documents(path)
    assert caught.value.finding.subject == str(path)
    assert word in str(caught.value)


@pytest.mark.parametrize(("id_bytes", "form", "magic", "version"), [(2, "H", 20240520, 1), (4, "I", 20240801, 7)])
def test_a_shard_is_written_as_llm_c_writes_it(tmp_path, id_bytes, form, magic, version):
    path = tmp_path / "out.bin"
    parts = [np.array([END, 1, 2], np.uint16), np.array([END, 3], np.int64)]
    assert write_shard(path, iter(parts), id_bytes=id_bytes) == 5
    assert path.read_bytes() == of_llm_c([END, 1, 2, END, 3], form=form, magic=magic, version=version)
    assert documents(path) == [[1, 2], [3]]


def test_an_id_that_does_not_fit_leaves_no_shard_behind(tmp_path):
    path = tmp_path / "out.bin"
    for wrong in (70_000, -1):
        with pytest.raises(DataError, match="does not have"):
            write_shard(path, [np.array([1]), np.array([2, wrong])], id_bytes=2)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_of_shards_is_its_bin_files_where_shards_are_searched_for(tmp_path, notices):
    for name in ("val.bin", "train.bin", "meta.pkl", "prepare.py"):
        (tmp_path / name).write_bytes(struct.pack("<2H", 1, END))
    found = find_files([str(tmp_path)], notice=notices.append, shards=True)
    assert found == [tmp_path / "train.bin", tmp_path / "val.bin"]
    assert notices == [f"{tmp_path}: left out: no .bin: 2 ({tmp_path / 'meta.pkl'}, {tmp_path / 'prepare.py'})"]
    assert find_files([str(tmp_path / "meta.pkl")], notice=print, shards=True) == [tmp_path / "meta.pkl"]  # it is named
    with pytest.raises(DataError, match="no token shard in it"):
        find_files([str(tmp_path / "*.py")], notice=print, shards=True)

"""A look at the text before a run: every fault that a start would refuse, in bounded time."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from apr_train.data import look as module
from apr_train.data.look import look_at
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.scan import scan_corpus
from apr_train.errors import DataError
from apr_train.run.settings import DataSettings


def look(*paths, **settings):
    return look_at(DataSettings(data=tuple(map(str, paths)), **settings))


def test_a_small_corpus_is_read_whole_and_split_as_a_start_splits_it(corpus_folder):
    found = look(corpus_folder)
    assert found.findings == ()
    assert found.learnt == (scan_corpus(DataSettings(data=(str(corpus_folder),)), notice=str),)
    assert found.facts == {"data": {"files": 40, "beginnings": 0, "text_bytes": found.learnt[0].text_bytes, "complete": True}}


BROKEN = {
    "a.jsonl": (b'{"text": "fine"}\n{"text": null}\n', "PREFLIGHT-025"),
    "b.jsonl": (b'{"text": "fine"}\n{oops\n', "PREFLIGHT-025"),
    "c.txt": (b"caf\xe9", "PREFLIGHT-025"),
    "d.jsonl.gz": (gzip.compress(b"text"), "PREFLIGHT-025"),
    "e.txt": (b" \n", "PREFLIGHT-025"),
    "f.txt": (b"x", "PREFLIGHT-025"),
    "g.json": (b'[{"id": 1}]', "PREFLIGHT-025"),
}


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize("name", BROKEN)
def test_what_a_start_refuses_is_found_and_has_an_id(tmp_path, name):
    raw, rule = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(raw)
    found = look(path)
    faults = [finding.rule for finding in found.findings if finding.severity == "error"]
    with pytest.raises(DataError):
        for _ in scan_corpus(DataSettings(data=(str(path),)), notice=str).train():
            pass
    if name == "f.txt":  # enough text to be read, not to be split: the rows are asked about it
        assert found.learnt
    else:
        assert faults == [rule]


def test_a_folder_of_texts_holds_no_conversations_and_that_is_said(tmp_path):
    for name in ("a.py", "b.md"):
        (tmp_path / name).write_text("a text\n")
    (finding,) = look_at(DataSettings(data=(str(tmp_path),)), OBJECTIVES["sft"]).findings
    assert finding.rule == "PREFLIGHT-025"
    assert "a.py" in finding.found
    assert "causal-lm" in finding.hint


def test_each_of_several_arguments_has_its_fault(tmp_path):
    for name in ("c.txt", "d.jsonl.gz"):
        (tmp_path / name).write_bytes(BROKEN[name][0])
    found = look(tmp_path / "c.txt", tmp_path / "none", tmp_path / "d.jsonl.gz")
    assert [finding.rule for finding in found.findings] == ["PREFLIGHT-025", "PREFLIGHT-019", "PREFLIGHT-025"]


@pytest.mark.rule("PREFLIGHT-024")
def test_a_share_that_no_documents_make_up_is_a_warning(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} line\n" * 400)
    (finding,) = look(tmp_path).findings
    assert (finding.rule, finding.severity) == ("PREFLIGHT-024", "warning")


def test_a_large_corpus_is_looked_at_as_far_as_the_budget_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 1000)
    for number in range(100):
        (tmp_path / f"{number:03}.txt").write_text("x" * 100)
    (tmp_path / "099.txt").write_bytes(b"caf\xe9")
    found = look(tmp_path)
    assert (found.findings, found.learnt) == ((), ())
    assert found.facts == {"data": {"files": 10, "beginnings": 0, "text_bytes": 1000, "complete": False}}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_the_beginning_of_a_large_file_is_looked_at(tmp_path, monkeypatch, name):
    monkeypatch.setattr(module, "LOOKED_AT", 1000)
    line = json.dumps({"text": "ä" * 50}, ensure_ascii=False) + "\n"
    path = tmp_path / name
    fine, wrong = line * 50, (line * 5 + "{}\n" + line * 50) if name != "a.txt" else line * 5
    path.write_bytes(fine.encode())
    assert look(path).findings == ()
    path.write_bytes(wrong.encode() + (b"\xe9" if name == "a.txt" else b"") + fine.encode() * 2)
    assert [finding.rule for finding in look(path).findings] == ["PREFLIGHT-025"]


def test_of_a_large_file_it_is_said_how_far_it_was_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 1000)
    (tmp_path / "a.txt").write_text("some text\n" * 300)
    assert look(tmp_path / "a.txt").facts["data"] == {"files": 1, "beginnings": 1, "text_bytes": 1000, "complete": False}
    (tmp_path / "a.jsonl").write_text('{"text": "12345678"}\n' * 300)  # 21 bytes a line
    data = look(tmp_path / "a.jsonl").facts["data"]
    assert data == {"files": 1, "beginnings": 1, "text_bytes": 126 * 8, "complete": False}


def test_what_one_argument_does_not_need_of_the_budget_the_others_have(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 1000)
    sizes = {"large": 900, "small": 20, "other": 80, "more": 5000}
    for name, size in sizes.items():
        (tmp_path / name).write_text(name + "x" * (size - len(name)))
    whole = look(tmp_path / "large", tmp_path / "small", tmp_path / "other")
    assert whole.facts["data"] == {"files": 3, "beginnings": 0, "text_bytes": 1000, "complete": True}
    assert whole.learnt
    part = look(tmp_path / "more", tmp_path / "large", tmp_path / "small")
    assert part.facts["data"] == {"files": 3, "beginnings": 2, "text_bytes": 1000, "complete": False}


def test_a_file_that_two_arguments_reach_is_looked_at_once_as_a_start_reads_it(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 30)
    data = (str(tmp_path), str(tmp_path / "a.txt"))
    assert look(*data).learnt == (scan_corpus(DataSettings(data=data), notice=str),)


def test_copies_of_held_out_text_are_counted_by_the_look_and_by_a_start(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n % 100:02}"}) + "\n" for n in range(300)))
    said = []
    scan = scan_corpus(DataSettings(data=(str(path),)), notice=said.append)
    assert scan.left_out == 2 * len(scan.validation()) > 0
    (notice,) = said
    assert f"{scan.left_out} documents" in notice
    assert look(path).notes == (notice,)


def test_the_standard_library_is_not_read():
    assert look() == module.Look()


PACKED = {
    "a.jsonl.gz": lambda path, texts: path.write_bytes(gzip.compress(as_lines(texts))),
    "a.txt.zst": lambda path, texts: path.write_bytes(zstandard.compress("".join(texts).encode())),
    "a.parquet": lambda path, texts: pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path),
}


def as_lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("name", PACKED)
def test_of_packed_text_and_columns_as_much_is_looked_at_as_of_plain_text(tmp_path, monkeypatch, name):
    """The files are smaller than what may be looked at; what is in them is not."""
    texts = [f"{number} and some more words\n" * 10 for number in range(2000)]
    path = tmp_path / name
    PACKED[name](path, texts)
    monkeypatch.setattr(module, "LOOKED_AT", path.stat().st_size * 2)
    data = look(path).facts["data"]
    assert (data["beginnings"], data["complete"]) == (1, False)
    assert 1 <= data["text_bytes"] / module.LOOKED_AT < 1.1
    monkeypatch.setattr(module, "LOOKED_AT", path.stat().st_size * 20)
    assert look(path).facts["data"] == {"files": 1, "beginnings": 0, "text_bytes": len("".join(texts)), "complete": True}


@pytest.mark.parametrize("looked_at", [100, 1 << 20])
def test_texts_are_left_out_where_only_records_are_taken_and_refused_by_their_name(tmp_path, monkeypatch, looked_at):
    monkeypatch.setattr(module, "LOOKED_AT", looked_at)
    (tmp_path / "README.md").write_text("about the records\n" * 50)
    turns = [[{"role": "user", "content": str(number)}, {"role": "assistant", "content": "yes"}] for number in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    found = look_at(DataSettings(data=(str(tmp_path),)), OBJECTIVES["sft"])
    assert found.findings == ()
    assert f"files left out because they hold no records: 1 ({tmp_path / 'README.md'})" in found.notes
    found = look_at(DataSettings(data=(str(tmp_path / "README.md"),)), OBJECTIVES["sft"])
    assert [(finding.rule, finding.problem) for finding in found.findings] == [("PREFLIGHT-025", "no records in it")]

import glob
import json
import os
import sysconfig
from pathlib import Path

import pytest
from apr_train.data.documents import TextRecords, read_documents
from apr_train.data.scan import scan_corpus
from apr_train.data.sources import LeftOut, describe_sources, find_files, matches
from apr_train.errors import DataError
from apr_train.run.settings import DataSettings, Settings
from apr_train.run.settings_paths import absolute_paths


def texts(*paths):
    return [document.text for document in read_documents(paths)]


def find(*arguments, notices=None):
    return find_files(arguments, notice=(notices if notices is not None else []).append)


def test_a_file_is_one_document_with_its_newlines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefféß\r\nline\n".encode())
    assert texts(path) == ["éß\r\nline\n"]


def test_files_of_white_space_are_no_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" \n\n\t")
    assert texts(path) == []


def test_jsonl_takes_text_or_content_and_skips_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "one", "content": "not this"}\r\n',
        b"\n",
        b'{"text": null, "content": "two\\n"}\n',
        b'{"text": " "}\n',
        b'{"content": "\\ud83d\\ude00"}',
    ]
    path.write_bytes(b"".join(lines))
    documents = list(read_documents([path]))
    assert [document.text for document in documents] == ["one", "two\n", "😀"]
    assert [document.source for document in documents] == [f"{path}:1", f"{path}:3", f"{path}:5"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{oops", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "not JSON"),
        ("[1]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ('{"body": "x", "id": 3}', "no text in this record"),
        ("{}", "no text in this record"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path, line, problem):
    path = tmp_path / "bad.ndjson"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=problem) as caught:
        texts(path)
    assert caught.value.finding.where == f"{path}:3"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"messages": []}, "--objective sft"),
        ({"conversations": []}, "--objective sft"),
        ({"prompt": "a", "completion": "b"}, "--objective sft"),
        ({"prompt": "a", "completion": None}, "--text-field prompt"),
    ],
)
def test_who_learns_conversations_is_said_where_texts_are_meant(tmp_path, record, told):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(DataError) as caught:
        texts(path)
    assert told in caught.value.finding.hint


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize(
    ("value", "word"), [({"a": 1}, "an object"), ([1], "an array"), (3, "a number"), (True, "true or false"), (None, "null")]
)
@pytest.mark.parametrize("name", ["text", "content"])
def test_a_text_of_another_type_names_the_field_and_the_type(tmp_path, name, value, word):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({name: value}))
    with pytest.raises(DataError) as caught:
        texts(path)
    finding = caught.value.finding
    assert (finding.rule, finding.where, finding.found) == ("PREFLIGHT-025", f"{path}:1 [{name}]", word)
    assert ("select" in finding.hint) is (value is None)


def test_records_with_other_fields_name_them_and_the_one_that_is_probably_meant(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "3", "body": "a long text", "n": 1}')
    with pytest.raises(DataError) as caught:
        texts(path)
    assert caught.value.finding.found == "the fields body, id, n"
    assert caught.value.finding.hint == "If 'body' is the text: --text-field body"


def test_a_field_that_is_named_is_taken_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "not this", "body": "one"}\n{"body": "two"}\n')
    assert [document.text for document in read_documents([path], TextRecords("body"))] == ["one", "two"]
    array = tmp_path / "a.json"
    array.write_text('[{"body": "three"}]')
    assert [document.text for document in read_documents([array], TextRecords("body"))] == ["three"]


def test_a_field_that_is_misspelt_is_answered_with_the_closest_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one", "id": "a much longer string than the body"}')
    with pytest.raises(DataError) as caught:
        list(read_documents([path], TextRecords("boddy")))
    assert caught.value.finding.expected == '"boddy" with a string'
    assert caught.value.finding.hint == "If 'body' is the text: --text-field body"


def test_a_line_longer_than_a_record_may_be_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("apr_train.data.formats.bounds.LARGEST_RECORD", 50)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "short"}\n' + json.dumps({"text": "a" * 50}))
    with pytest.raises(DataError, match="a line is too long") as caught:
        texts(path)
    assert caught.value.finding.where == f"{path}:2"


RECORDS = [{"text": "one\n"}, {"content": "two 😀"}, "three ]", {"text": " "}, {"id": 1, "text": 'four "x"'}]
FOUND = ["one\n", "two 😀", "three ]", 'four "x"']


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"ensure_ascii": False, "separators": (",", ":")}])
@pytest.mark.parametrize("judged", [1 << 22, 40])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_json_array_is_a_document_a_record_whatever_part_of_it_is_in_memory(tmp_path, monkeypatch, layout, judged, bom):
    path = tmp_path / "a.json"
    path.write_bytes(bom + json.dumps(RECORDS, **layout).encode())
    monkeypatch.setattr("apr_train.data.formats.records.JUDGED", judged)
    monkeypatch.setattr("apr_train.data.formats.records._READ", 7)
    documents = list(read_documents([path]))
    assert [document.text for document in documents] == FOUND
    assert [document.source for document in documents] == [f"{path}[{place}]" for place in (0, 1, 2, 4)]


LONG = [{"text": "ä" * 3000}, {"text": "b"}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps(LONG, ensure_ascii=False), ["ä" * 3000, "b"]),
        (json.dumps([value["text"] for value in LONG]), ["ä" * 3000, "b"]),
        ("\n".join(map(json.dumps, LONG)), ["ä" * 3000, "b"]),
        (json.dumps(LONG[0]), ["ä" * 3000]),
        ('[{"id": "' + "x" * 3000 + '"}]', None),
        ('["' + "x" * 3000, None),
        ('{"id": "' + "x" * 3000 + '"}', None),
    ],
)
@pytest.mark.parametrize("judged", [1, 64, 1000])
def test_a_json_whose_first_record_is_longer_than_what_is_judged_is_told_by_that_record(
    tmp_path, monkeypatch, content, expected, judged
):
    monkeypatch.setattr("apr_train.data.formats.records.JUDGED", judged)
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    assert texts(path) == (expected or [content])


def test_no_more_of_a_json_is_read_to_tell_its_form_than_a_record_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr("apr_train.data.formats.records.JUDGED", 16)
    monkeypatch.setattr("apr_train.data.formats.bounds.LARGEST_RECORD", 1000)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(LONG))
    assert texts(path) == [json.dumps(LONG)]


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_json_lines_in_a_json_file_are_a_document_a_line(tmp_path, end):
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps({"text": text}) for text in FOUND) + end)
    assert texts(path) == FOUND
    path.write_text('{"text": "only one"}' + end)
    assert texts(path) == ["only one"]


@pytest.mark.parametrize(
    "content",
    [
        '{"name": "a", "version": "1"}',
        '{\n  "name": "a",\n  "text": "not a record"\n}\n',
        "[1, 2, 3]",
        '["error", {"max": 1}]',
        '[{"id": 1}, {"id": 2}]',
        '{"id": 1}\n{"id": 2}\n',
        '{"a": 1}\n// no JSON',
        "[not JSON",
        "true",
    ],
)
def test_any_other_json_is_one_text_as_it_stands(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    assert texts(path) == [content]


@pytest.mark.parametrize("content", ['[{"id": 1}]', '{"id": 1}\n{"id": 2}\n', "[1, 2]", '["a", {"b": 1}]', '[{"text": "a"},'])
def test_a_list_without_texts_is_refused_where_it_is_named_and_text_in_a_folder(tmp_path, content, notices):
    path = tmp_path / "a.json"
    path.write_text(content)
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(DataError) as caught:
        scan_corpus(DataSettings(data=(str(path),)), notice=str)
    assert caught.value.finding.rule == "PREFLIGHT-025"
    assert str(path) in caught.value.finding.subject
    scan_corpus(DataSettings(data=(str(tmp_path),)), notice=notices.append)
    assert ".json files: 1 taken as text as they stand" in notices


def test_one_notice_says_what_json_files_and_notebooks_were_taken_for(tmp_path, notices):
    for number in range(3):
        (tmp_path / f"array{number}.json").write_text(json.dumps([f"text {number}"] * 3))
        (tmp_path / f"lines{number}.json").write_text(json.dumps({"text": f"line {number}"}) * 1)
    (tmp_path / "package.json").write_text('{\n "name": "a"\n}')
    (tmp_path / "a.ipynb").write_text('{"cells": []}')
    scan_corpus(DataSettings(data=(str(tmp_path),)), notice=notices.append)
    arrays, lines, rest = "3 read as arrays, a document a record", "3 read as JSON lines, a document a line", "1 taken as text"
    assert f".json files: {arrays}, {lines}, {rest} as they stand" in notices
    assert ".ipynb files: 1 taken as the JSON that they are; nbconvert makes scripts of them" in notices


@pytest.mark.parametrize("tail", ["", "]]", '"b"]', ",]", ",,1]", '{"text"', "] x"])
def test_a_large_array_that_breaks_off_names_the_record(tmp_path, monkeypatch, tail):
    monkeypatch.setattr("apr_train.data.formats.records.JUDGED", 20)
    monkeypatch.setattr("apr_train.data.formats.records._READ", 7)
    path = tmp_path / "a.json"
    path.write_text('["one", "two two two two"' + tail)
    with pytest.raises(DataError, match="not JSON") as caught:
        texts(path)
    assert str(path) in caught.value.finding.subject


def test_bad_utf8_in_an_array_names_the_byte_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("apr_train.data.formats.records.JUDGED", 20)
    monkeypatch.setattr("apr_train.data.formats.records._READ", 7)
    path = tmp_path / "a.json"
    path.write_bytes(b'["one two three", "caf\xe9"]')
    with pytest.raises(DataError, match="not UTF-8") as caught:
        texts(path)
    assert caught.value.finding.found == "byte 0xe9 at byte 22 of the file"


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_bad_utf8_names_file_line_and_byte(tmp_path, suffix):
    path = tmp_path / f"latin.{suffix}"
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match="not UTF-8") as caught:
        texts(path)
    assert caught.value.finding.where == f"{path}:2"
    assert caught.value.finding.found == "byte 0xe9 at byte 14 of the line"


def test_folders_are_walked_in_one_order_without_hidden_compiled_and_binary_files(tmp_path, notices):
    for name in ("b.py", "a.md", "c/d.py", ".git/config", "__pycache__/b.pyc", ".hidden"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    assert find(str(tmp_path), notices=notices) == [tmp_path / "a.md", tmp_path / "b.py", tmp_path / "c" / "d.py"]
    assert notices == [f"{tmp_path}: left out: with NUL bytes: 1 ({tmp_path / 'image.png'})"]


def test_globs_go_into_subfolders_and_a_file_reached_twice_is_taken_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.py", "sub/b.py", "sub/c.txt"):
        (tmp_path / name).write_text("x")
    expected = [tmp_path / "a.py", tmp_path / "sub" / "b.py"]
    assert find(str(tmp_path / "**" / "*.py")) == expected
    assert find(*map(str, expected), str(tmp_path / "sub" / ".." / "a.py")) == expected


def test_globs_leave_out_binary_files_and_a_named_one_is_taken(tmp_path, notices):
    (tmp_path / "a.py").write_text("x")
    (tmp_path / "b.py").write_bytes(b"\0")
    pattern = str(tmp_path / "*.py")
    assert find(pattern, notices=notices) == [tmp_path / "a.py"]
    assert notices == [f"{pattern}: left out: with NUL bytes: 1 ({tmp_path / 'b.py'})"]
    assert find(str(tmp_path / "b.py")) == [tmp_path / "b.py"]


@pytest.mark.parametrize("pattern", ["**", "**/*", "**/*.py", "sub/**/*.py", "*/**", "**/sub", "**/sub/**/b.*"])
def test_a_double_star_reaches_what_the_standard_glob_reaches(tmp_path, pattern):
    for name in ("a.py", "sub/b.py", "sub/[x]/sub/b.md", "sub/.hidden/c.py", "sub/.d.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    found = map(Path, glob.glob(str(tmp_path / pattern), recursive=True))  # noqa: PTH207 - what it is compared with
    below = [inner for path in found for inner in ([path] if path.is_file() else path.rglob("*"))]
    expected = {path for path in below if path.is_file() and "/." not in str(path)}
    assert set(find(str(tmp_path / pattern))) == expected


def test_links_that_lead_round_in_circles_are_not_followed_and_a_linked_file_is_read(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.py").write_text("x")
    (folder / "sub" / "b.py").symlink_to(folder / "a.py")
    (folder / "sub" / "one").symlink_to(folder)
    expected = [folder / "a.py", folder / "sub" / "b.py"]
    assert sorted(matches(str(folder / "**" / "*.py"), LeftOut())) == expected
    (folder / "sub" / "two").symlink_to(folder)
    assert sorted(matches(str(folder / "**" / "*.py"), LeftOut())) == expected
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "c.py").write_text("x")
    (folder / "sub" / "three").symlink_to(tmp_path / "outside")
    assert find(str(folder)) == find(str(folder / "**" / "*")) == expected[:1]
    assert find(str(folder / "sub" / "one")) == [folder / "sub" / "one" / "a.py"]


@pytest.mark.parametrize("beside", [".lock", "config.toml"])
@pytest.mark.parametrize("pattern", ["", "**", "**/*", "*"])
def test_runs_and_the_cache_are_no_text(tmp_path, monkeypatch, notices, beside, pattern):
    monkeypatch.setenv("APR_TRAIN_CACHE", str(tmp_path / "cache"))
    for name in (
        "a.py",
        "cache/tokenizers/k.json",
        "x/identity.json",
        f"x/{beside}",
        "x/metrics.jsonl",
        "x/step-000001/state.json",
        "y/identity.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    argument = str(tmp_path / pattern)
    assert find(argument, notices=notices) == [tmp_path / "a.py", tmp_path / "y" / "identity.json"]
    left_out = f"2 ({tmp_path / 'cache'}, {tmp_path / 'x'})"
    assert notices == [f"{argument}: left out: output of apr-train itself: {left_out}"]


def test_a_run_that_is_named_is_taken(tmp_path):
    for name in ("identity.json", "config.toml"):
        (tmp_path / name).write_text("text")
    assert find(str(tmp_path)) == [tmp_path / "config.toml", tmp_path / "identity.json"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    path = tmp_path / "a[1].txt"
    path.write_text("x")
    assert find(str(path)) == [path]


@pytest.mark.parametrize("argument", ["nothing-here.txt", "*.nothing", "", "nul\0byte"])
def test_an_argument_that_matches_nothing_is_an_error(tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        find(argument)


@pytest.mark.rule("PREFLIGHT-019")
def test_a_mistyped_path_and_a_glob_without_a_match_say_different_things(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sources" / "deep").mkdir(parents=True)
    for argument, problem, hint in (
        ("source/deep/a.py", "no such file or folder", "did you mean sources?"),
        ("sources/depe", "no such file or folder", f"did you mean {Path('sources') / 'deep'}?"),
        ("zzz", "no such file or folder", str(tmp_path)),
        ("sources/*.txt", "nothing matches this glob", "'sources/**/*.txt'"),
        ("sources/none/**/*.py", "nothing matches this glob", "The folder sources is there"),
    ):
        with pytest.raises(DataError) as caught:
            find(argument)
        finding = caught.value.finding
        assert (finding.rule, finding.subject, finding.problem) == ("PREFLIGHT-019", argument, problem)
        assert hint in finding.hint


def test_virtual_environments_and_node_packages_are_left_out_with_a_notice(tmp_path, notices):
    for name in ("a.py", "venv/pyvenv.cfg", "venv/lib/b.py", "web/node_modules/c/index.js", "web/d.js"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    assert find(str(tmp_path), notices=notices) == [tmp_path / "a.py", tmp_path / "web" / "d.js"]
    left_out = f"2 ({tmp_path / 'venv'}, {tmp_path / 'web' / 'node_modules'})"
    assert notices == [f"{tmp_path}: left out: environments and installed packages: {left_out}"]
    assert find(str(tmp_path / "venv" / "lib")) == [tmp_path / "venv" / "lib" / "b.py"]


def test_an_empty_folder_and_a_pipe_are_errors(tmp_path):
    with pytest.raises(DataError, match="no text file"):
        find(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        find(str(tmp_path / "pipe"))


def test_a_file_that_vanishes_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        texts(tmp_path / "gone.txt")


def test_the_default_is_the_standard_library_without_tests_and_installed_packages():
    files = find()
    folder = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(folder) for path in files]
    assert files == find()
    assert len(files) > 300
    assert Path("os.py") in names
    assert Path("json/decoder.py") in names
    assert not any({"test", "tests", "site-packages", "__pycache__"} & set(name.parts) for name in names)
    assert all(path.suffix == ".py" for path in files)
    assert "standard library" in describe_sources([])


def test_every_document_of_the_standard_library_can_be_read():
    documents = list(read_documents(find()))
    assert sum(len(document.text) for document in documents) > 5_000_000
    json.dumps([document.text for document in documents[:5]])


@pytest.mark.parametrize("make", [lambda path: None, lambda path: (path / "a").write_bytes(b"a\0b")], ids=["empty", "binary"])
def test_a_folder_without_text_is_refused_either_way(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match="no text file"):
        find(str(tmp_path))


DOWNLOAD = "download it first: hf download --repo-type dataset HuggingFaceH4/ultra --local-dir ultra"


@pytest.mark.rule("PREFLIGHT-019")
@pytest.mark.parametrize(
    ("argument", "where", "hint"),
    [
        ("HuggingFaceH4/ultra", "{here}/HuggingFaceH4/ultra", DOWNLOAD),
        ("https://huggingface.co/datasets/HuggingFaceH4/ultra", None, DOWNLOAD),
        ("https://huggingface.co/datasets/HuggingFaceH4/ultra/tree/main?x=1", None, DOWNLOAD),
        ("hf://datasets/HuggingFaceH4/ultra", None, DOWNLOAD),
        ("huggingface.co/datasets/HuggingFaceH4/ultra", None, DOWNLOAD),
        ("https://example.org/text.txt", None, "Download it first"),
    ],
)
def test_a_data_set_of_the_hub_is_answered_with_its_download(argument, where, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (given,) = absolute_paths(Settings(data=DataSettings(data=(argument,)))).data.data
    with pytest.raises(DataError) as caught:
        find(given)
    finding = caught.value.finding
    assert (finding.rule, finding.subject) == ("PREFLIGHT-019", where.format(here=tmp_path) if where else argument)
    assert hint in finding.hint


def test_a_path_that_is_spelt_as_no_data_set_has_no_word_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for argument in ("texts/a.txt", "there/zzz", "a/b/c", "zzz"):
        with pytest.raises(DataError) as caught:
            find(argument)
        assert "hf download" not in caught.value.finding.hint

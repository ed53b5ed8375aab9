"""Files that nobody means well with: one error, soon, in little memory. Each once brought out something else."""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
import time
from pathlib import Path

import pytest
from apr_train.checkpoint.companions import reference_beside, tokenizer_companions
from apr_train.checkpoint.files import MAX_DEPTH, MAX_DIGITS, json_value, map_file, parse_json, parse_toml, read_text
from apr_train.checkpoint.huggingface import tokenizer_of
from apr_train.checkpoint.open import open_checkpoint, open_tokenizer
from apr_train.checkpoint.safetensors import read_index
from apr_train.errors import ConfigError, FormatError
from apr_train.run.settings_file import read_toml

GIB = 1 << 30


@pytest.fixture(autouse=True)
def soon():
    """Within 5 seconds of a processor."""
    before = time.process_time()
    yield
    assert time.process_time() - before < 5


def nested(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("1e999", "out of range"),
        ("9" * (MAX_DIGITS + 1), "309 digits"),
        ("-" + "9" * 5000, "5,000 digits"),
        (nested(MAX_DEPTH + 1), "nested too deep"),
        (nested(100_000), "nested too deep"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested too deep"),
        ("[" + "0," * (1 << 22) + "0]", "more values than are read"),
        (r'{"\ud800": 1}', "half a surrogate pair"),
        (r'["\udfff"]', "half a surrogate pair"),
        ("\ufeff{}", "BOM"),
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_json_that_is_none_or_too_much_is_refused(text, message):
    with pytest.raises(FormatError, match=message) as caught:
        json_value(text, "x.json", field="f")
    assert str(caught.value).startswith("x.json [f]: ")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (nested(MAX_DEPTH), json.loads(nested(MAX_DEPTH))),
        ("9" * MAX_DIGITS, int("9" * MAX_DIGITS)),
        ("1000000000000000019884624838656", 10**30 + 19884624838656),
        (r'"\ud83d\ude00"', "\U0001f600"),
        ('{"a": 1, "a": 2}', {"a": 2}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_within_the_bounds_is_read(text, value):
    assert json_value(text, "x.json") == value


def test_a_key_that_is_there_twice_is_refused_where_that_is_asked_for():
    with pytest.raises(FormatError, match="a key is there twice"):
        json_value('{"a": {"b": 1, "b": 1}}', "x", unique=True)


def test_half_a_pair_is_read_where_our_own_files_have_it():
    assert json_value(r'"a\udce9"', "x", half_pairs=True) == "a\udce9"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a = " + b"1" * 5000, "not a TOML file"),
        (b"a = " + nested(100_000).encode(), "nested too deep"),
        (b"a = " + nested(MAX_DEPTH).encode(), "nested too deep"),
        (b"a." * 100_000 + b"b = 1", "hundreds of parts"),
        (b"[" + b"'a'." * 5_000 + b"b]", "hundreds of parts|not a TOML"),
        (b"x = {" + b'"a".' * 10_000 + b"b = 1}", "hundreds of parts"),
        (b'"' * 200_000 + b"." * 1000, "not a TOML file|hundreds"),
        (b"\xff", "not UTF-8"),
        (b"a = 1\n" * 200_000, "too large"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_toml_that_is_none_or_too_much_is_refused(tmp_path, raw, message):
    path = tmp_path / "run.toml"
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=message):
        parse_toml(path)
    with pytest.raises(ConfigError, match=message):
        read_toml(path)


def test_dots_in_a_text_or_in_many_paths_are_no_parts_of_a_key(tmp_path):
    path = tmp_path / "run.toml"
    dots, paths = "." * 1000, ", ".join(["'x.txt'"] * 400)
    path.write_text(f'a = "{dots}"\nb = [{paths}]\nc = """\n{dots[:200]}\n"""\n')
    assert parse_toml(path)["b"] == ["x.txt"] * 400


def special(folder: Path, kind: str) -> Path:
    path = folder / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to(kind)
    return path


READERS = {
    "checkpoint": open_checkpoint,
    "tokenizer": open_tokenizer,
    "settings": read_toml,
    "json": parse_json,
    "text": read_text,
    "map": map_file,
    "safetensors": read_index,
}


@pytest.mark.parametrize("kind", ["fifo", "socket", "/dev/zero", "/dev/null", "/dev/tty"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, monkeypatch, reader, kind):
    path = special(tmp_path, kind)
    opened, own = [], os.open
    monkeypatch.setattr(os, "open", lambda name, *rest, **named: opened.append(os.fspath(name)) or own(name, *rest, **named))
    with pytest.raises((FormatError, ConfigError), match=r"not a regular file|neither a file nor a folder"):
        READERS[reader](path)
    assert str(path) not in opened


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.json"])
def test_a_side_file_of_6_gb_is_refused_unread(tmp_path, name):
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    with (tmp_path / name).open("wb") as file:
        file.truncate(6 * GIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match=rf"{name}: too large a file to be read whole, expected at most [\d,]+ bytes"):
        tokenizer_of(tmp_path, {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("readme", ["---" + "\n" * 60_000, "---\n" + " \n" * 30_000 + "--", "--- " * 15_000, "---\n" * 15_000])
def test_a_card_of_empty_lines_costs_nothing(tmp_path, readme):
    (tmp_path / "README.md").write_text(readme)
    before = time.process_time()
    assert reference_beside(tmp_path) == {}
    assert time.process_time() - before < 0.5


VOCABULARY = {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"added_tokens": 5}, "not a list"),
        ({"added_tokens": [{"id": 1 << 63, "content": "x"}]}, "lacks id or content"),
        ({"added_tokens": [{"id": True, "content": "x"}]}, "lacks id or content"),
        ({"model": {"type": "BPE", "vocab": {"a": 1 << 63}}}, "a token's id is none"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}}}, "a token's id is none"),
        ({"model": {"type": "BPE", "vocab": {"a": 1.5}}}, "a token's id is none"),
    ],
    ids=repr,
)
def test_ids_that_no_token_can_have_are_refused(tmp_path, content, message):
    whole = {"model": {"type": "BPE", "vocab": VOCABULARY, "merges": []}, "added_tokens": [], **content}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "x"}')
    with pytest.raises(FormatError, match=message):
        tokenizer_of(tmp_path, {})


@pytest.mark.parametrize("index", ["9" * 5000, "-1", "x", "9999999999999", "²"])
def test_the_ids_of_added_tokens_are_read_as_text_with_care(tmp_path, index):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    (tmp_path / "merges.txt").write_text("")
    settings = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {index: {"content": "x"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(FormatError, match="not a token"):
        tokenizer_of(tmp_path, {})


def safetensors(entries) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("a", [0, 1 << 62], "impossible shape"),
        ("a", [0] + [1 << 62] * 63, "impossible shape"),
        ("x" * 1001, [0], "not a usable tensor name"),
        ("\ud800", [0], "half a surrogate pair"),
    ],
)
def test_a_tensor_of_nothing_has_a_shape_that_an_array_can_have(tmp_path, name, shape, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}))
    with pytest.raises(FormatError, match=message) as caught:
        read_index(path)
    assert len(str(caught.value)) < 4096


def test_a_setting_of_a_side_file_may_be_larger_than_any_number_of_tokens(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert tokenizer_companions(tmp_path)["tokenizer_config.json"]["model_max_length"] > 10**30

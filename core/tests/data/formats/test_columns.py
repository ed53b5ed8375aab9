"""Columns: what pyarrow writes is read row by row; what it would not survive is refused before it reads it."""

import json
import struct
import subprocess
import sys
from datetime import datetime
from decimal import Decimal

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from apr_train.data.documents import TEXTS, TextRecords, read_documents
from apr_train.data.formats import bounds
from apr_train.data.formats.arrow_messages import largest_batch
from apr_train.errors import DataError

ROWS = [f"text {number} " + "é" * (number % 7) for number in range(500)]
OTHER = list(range(500))


def table(**columns):
    return pyarrow.table({"text": ROWS, "n": OTHER} | columns)


def write_parquet(path, content, **options):
    pyarrow.parquet.write_table(content, path, **({"row_group_size": 130} | options))


def write_file(path, content, **options):
    with pyarrow.ipc.new_file(path, content.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content, max_chunksize=130)


def write_stream(path, content, **options):
    with pyarrow.ipc.new_stream(path, content.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content, max_chunksize=130)


WRITERS = {
    "snappy.parquet": write_parquet,
    "plain.parquet": lambda path, content: write_parquet(path, content, use_dictionary=False, compression="none"),
    "zstd.parquet": lambda path, content: write_parquet(path, content, compression="zstd", data_page_version="2.0"),
    "delta.parquet": lambda path, content: write_parquet(
        path, content, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}
    ),
    "checked.parquet": lambda path, content: write_parquet(path, content, write_page_checksum=True),
    "file.arrow": write_file,
    "stream.arrow": write_stream,
    "lz4.arrow": lambda path, content: write_file(path, content, compression="lz4"),
    "zstd.arrow": lambda path, content: write_stream(path, content, compression="zstd"),
    "old.arrow": lambda path, content: write_file(path, content, use_legacy_format=True),
    "a.feather": lambda path, content: pyarrow.feather.write_feather(content, str(path), chunksize=130),
}


def documents(path, take=TEXTS):
    return [(document.source, document.text) for document in read_documents([path], take)]


def texts(path, take=TEXTS):
    return [text for _, text in documents(path, take)]


@pytest.mark.parametrize("name", WRITERS)
def test_the_rows_of_columns_are_documents(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, table())
    assert documents(path) == [(f"{path}[{number}]", text) for number, text in enumerate(ROWS)]


@pytest.mark.parametrize("name", WRITERS)
def test_content_decides_and_not_the_name(tmp_path, name):
    path = tmp_path / "shard"
    WRITERS[name](path, table())
    if name != "old.arrow":  # nothing but its name tells that stream from other bytes
        assert texts(path) == ROWS


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.binary(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["file.arrow", "stream.arrow", "snappy.parquet"])
def test_text_of_every_type_is_text(tmp_path, kind, name):
    path = tmp_path / name
    values = pyarrow.array([text.encode() for text in ROWS] if kind == pyarrow.binary() else ROWS)
    values = values.dictionary_encode() if pyarrow.types.is_dictionary(kind) else values.cast(kind)
    WRITERS[name](path, pyarrow.table({"text": values}))
    assert texts(path) == ROWS


class Whole:
    """A take of whole records, as that of conversations is."""

    whole_texts, fingerprint, columns = False, "whole", None

    def __call__(self, record, where):
        return json.dumps(record)


@pytest.mark.parametrize("name", WRITERS)
def test_all_columns_come_as_json_has_them_where_all_are_asked_for(tmp_path, name):
    messages = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in ROWS]
    path = tmp_path / name
    WRITERS[name](path, table(messages=messages))
    found = [json.loads(text) for text in texts(path, Whole())]
    assert found == [
        {"text": text, "n": number, "messages": turns} for text, number, turns in zip(ROWS, OTHER, messages, strict=True)
    ]


@pytest.mark.parametrize("name", ["snappy.parquet", "stream.arrow"])
def test_what_json_lacks_comes_as_text(tmp_path, name):
    when, amount = datetime(2026, 1, 2, 3, 4, 5), Decimal("1.50")
    path = tmp_path / name
    turns = [[{"role": "user", "at": when, "tags": {"a": b"caf\xc3\xa9"}}]]
    WRITERS[name](path, pyarrow.table({"text": ["a"], "when": [when], "amount": [amount], "turns": turns}))
    (text,) = texts(path, Whole())
    assert json.loads(text) == {
        "text": "a",
        "when": "2026-01-02 03:04:05",
        "amount": "1.50",
        "turns": [{"role": "user", "at": "2026-01-02 03:04:05", "tags": {"a": "café"}}],
    }


def test_only_the_wanted_column_of_a_parquet_is_read(tmp_path):
    """The length of the other column's text is overwritten: whoever reads it fails."""
    path = tmp_path / "a.parquet"
    content = pyarrow.table({"text": ["short"], "other": ["x" * 1000]})
    write_parquet(path, content, compression="none", use_dictionary=False, write_statistics=False)
    raw = path.read_bytes()
    place = raw.index(b"x" * 1000)
    path.write_bytes(raw[: place - 4] + b"\xff\xff\xff\x7f" + raw[place:])
    assert texts(path) == ["short"]
    with pytest.raises(DataError):
        texts(path, TextRecords("other"))


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_columns_without_the_field_are_listed_with_their_types_and_the_likely_one(tmp_path, name):
    path = tmp_path / name
    content = pyarrow.table({"id": ["a"], "code": ["def f(): pass" * 100], "n": [1], "t": [["x"]]})
    WRITERS.get(name, write_parquet)(path, content)
    with pytest.raises(DataError, match="no such column") as caught:
        texts(path)
    finding = caught.value.finding
    assert (finding.rule, finding.subject, finding.expected) == ("PREFLIGHT-025", str(path), "content or text")
    assert finding.found.startswith("the columns id (string), code (string), n (int64), t (list<")
    with pytest.raises(DataError, match="no such column") as caught:
        texts(path, TextRecords("cod"))
    assert caught.value.finding.hint == "If 'code' is the text: --text-field code"
    assert texts(path, TextRecords("code")) == ["def f(): pass" * 100]


def test_the_largest_column_of_strings_is_suggested(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, pyarrow.table({"id": [str(n) for n in range(99)], "body": [f"a long text {n}" for n in range(99)]}))
    with pytest.raises(DataError) as caught:
        texts(path)
    assert caught.value.finding.hint == "If 'body' is the text: --text-field body"


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow"])
def test_a_row_without_a_text_is_named_by_its_number(tmp_path, name):
    path = tmp_path / name
    write = WRITERS.get(name, write_parquet)
    write(path, pyarrow.table({"text": [*ROWS[:200], None]}))
    with pytest.raises(DataError, match="not a text") as caught:
        texts(path)
    assert (caught.value.finding.where, caught.value.finding.found) == (f"{path}[200] [text]", "null")
    write(path, pyarrow.table({"text": [[1], [2]]}))
    with pytest.raises(DataError, match="not a text") as caught:
        texts(path)
    assert caught.value.finding.found == "an array"


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.string()], ids=str)
@pytest.mark.parametrize("name", ["a.parquet", "file.arrow"])
def test_a_row_that_is_not_utf8_is_named(tmp_path, name, kind):
    path = tmp_path / name
    values = pyarrow.Array.from_buffers(
        kind, 1, [None, pyarrow.py_buffer(struct.pack("<2i", 0, 4)), pyarrow.py_buffer(b"caf\xe9")]
    )
    WRITERS.get(name, write_parquet)(path, pyarrow.table({"text": values}))
    with pytest.raises(DataError, match=r"not UTF-8|UTF8") as caught:
        texts(path)
    assert caught.value.finding.subject.startswith(str(path))


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize("name", WRITERS)
def test_columns_that_break_off_are_named(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, table())
    whole = path.read_bytes()
    cut = tmp_path / f"cut.{'parquet' if name.endswith('parquet') else 'arrow'}"
    for size in (0, 3, 9, 200, len(whole) // 2, len(whole) - 9, len(whole) - 7, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(DataError) as caught:
            texts(cut)
        assert (caught.value.finding.rule, caught.value.finding.subject) == ("PREFLIGHT-025", str(cut))


def test_a_stream_that_ends_between_two_batches_breaks_off(tmp_path):
    """Arrow itself takes the end of the file for the end of the stream."""
    path, part = tmp_path / "a.arrow", tmp_path / "part.arrow"
    write_stream(path, table())
    sink = pyarrow.BufferOutputStream()
    writer = pyarrow.ipc.new_stream(sink, table().schema)
    writer.write_table(table(), max_chunksize=130)
    part.write_bytes(sink.getvalue())  # the writer is not closed
    with pyarrow.ipc.open_stream(part.read_bytes()) as stream:
        assert stream.read_all().num_rows == 500
    with pytest.raises(DataError, match="it breaks off"):
        texts(part)


def test_a_row_group_larger_than_the_bound_is_refused_by_the_wanted_columns(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write_parquet(path, table(large=["x" * 500 + str(number) for number in range(500)]), use_dictionary=False)
    monkeypatch.setattr(bounds, "LARGEST_ROW_GROUP", 20_000)
    assert texts(path) == ROWS
    with pytest.raises(DataError, match="a row group that is too large") as caught:
        texts(path, TextRecords("large"))
    assert caught.value.finding.field == "row group 0"
    assert "row_group_size" in caught.value.finding.hint


@pytest.mark.parametrize("compression", ["lz4", "zstd", None])
def test_the_size_of_a_batch_is_told_before_it_is_read(tmp_path, monkeypatch, compression):
    path = tmp_path / "a.arrow"
    content = pyarrow.table({"text": ["a" * 1_000_000] * 3})
    write_stream(path, content, compression=compression)
    with pyarrow.ipc.open_stream(path.read_bytes()) as stream:
        batch = stream.read_next_batch()
    assert batch.nbytes <= largest_batch(path, 0) <= batch.nbytes + 1000
    monkeypatch.setattr(bounds, "LARGEST_BATCH", 1_000_000)
    with pytest.raises(DataError, match="a batch that is too large"):
        texts(path)


@pytest.mark.parametrize("name", ["snappy.parquet", "delta.parquet", "zstd.arrow"])
def test_a_bomb_is_refused_when_it_passes_its_allowance(tmp_path, monkeypatch, name):
    monkeypatch.setattr(bounds, "ALWAYS_ALLOWED", 1 << 20)
    path = tmp_path / name
    text = "a" * 100_000
    WRITERS[name](path, pyarrow.table({"text": [text] * 1000}))
    assert bounds.LARGEST_RATIO * path.stat().st_size < 100_000 * 1000
    with pytest.raises(DataError, match="unpacks to more than a text does") as caught:
        texts(path)
    assert caught.value.finding.subject == str(path)


def test_a_footer_that_claims_more_than_the_file_has_is_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(20) + struct.pack("<I", 1 << 31) + b"PAR1")
    with pytest.raises(DataError) as caught:
        texts(path)
    assert caught.value.finding.subject == str(path)


def test_a_column_may_have_dots_in_its_name(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write_parquet(path, pyarrow.table({"text.clean": ROWS, "text": OTHER, "nested": [{"text": "no"}] * 500}))
    assert texts(path, TextRecords("text.clean")) == ROWS
    monkeypatch.setattr(bounds, "LARGEST_ROW_GROUP", 1000)
    with pytest.raises(DataError, match="a row group that is too large"):
        texts(path, TextRecords("text.clean"))


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    write_stream(path, pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"]))
    with pytest.raises(DataError, match="text several times"):
        texts(path)


def test_without_pyarrow_the_command_that_installs_it_is_told(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, table())
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from apr_train.data.documents import read_documents\n"
        "from apr_train.errors import DataError\n"
        "try:\n    list(read_documents([Path(sys.argv[1])]))\n"
        "except DataError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "pip install 'apr-train[arrow]'" in result.stdout
    assert result.stdout.startswith(f"PREFLIGHT-025: {path}: ")


def test_progress_is_told_in_bytes_of_the_file(tmp_path):
    for name, write in WRITERS.items():
        path, told = tmp_path / name, []
        write(path, table())
        for _ in read_documents([path], done=told.append):
            pass
        assert (sum(told), min(told) >= 0) == (path.stat().st_size, True)

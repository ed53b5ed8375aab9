"""Truncated and mutated files: one DataError that names the file, or what is left of the text; nothing else comes out."""

import gzip
import io
import json
import time

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from apr_train.data.documents import TEXTS, file_form, read_documents
from apr_train.data.shards import shard_documents
from apr_train.errors import DataError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

TEXT = [f"text {number} " + "ä" * (number % 5) for number in range(60)]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXT).encode()
TABLE = pyarrow.table({"text": TEXT, "turns": [[{"role": "user", "content": text}] for text in TEXT]})
LONGEST = 5.0
"""Seconds for one small file, on a machine that does other things, too."""


def parquet(**options):
    target = io.BytesIO()
    pyarrow.parquet.write_table(TABLE, target, row_group_size=25, **options)
    return target.getvalue()


def arrow(new, **options):
    target = io.BytesIO()
    with new(target, TABLE.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(TABLE, max_chunksize=25)
    return target.getvalue()


FILES = {
    "a.jsonl.gz": gzip.compress(LINES[:700]) + gzip.compress(LINES[700:]),
    "a.txt.gz": gzip.compress(LINES),
    "a.json.gz": gzip.compress(json.dumps(TEXT).encode()),
    "a.jsonl.zst": zstandard.compress(LINES[:700]) + zstandard.ZstdCompressor(write_checksum=True).compress(LINES[700:]),
    "a.txt.zst": zstandard.compress(LINES),
    "snappy.parquet": parquet(),
    "plain.parquet": parquet(use_dictionary=False, compression="none"),
    "zstd.parquet": parquet(compression="zstd", data_page_version="2.0", write_page_checksum=True),
    "file.arrow": arrow(pyarrow.ipc.new_file),
    "stream.arrow": arrow(pyarrow.ipc.new_stream),
    "lz4.arrow": arrow(pyarrow.ipc.new_file, compression="lz4"),
    "zstd.arrow": arrow(pyarrow.ipc.new_stream, compression="zstd"),
}
EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.sampled_from(["flip", "set", "insert", "drop", "wide"]), st.integers(0, 255)),
    max_size=6,
)


class All:
    """A take of every column."""

    whole_texts, fingerprint, columns = True, "all", None

    def __call__(self, record, where):
        return json.dumps(record, default=str).encode("utf-8", "replace")


def mutated(raw, edits, cut):
    """Some bytes changed, and the end cut off. Half of the places are counted from the end, where footers are."""
    changed = bytearray(raw[: len(raw) - cut] if cut else raw)
    for place, how, value in edits:
        if not changed:
            break
        at = place % len(changed) if place % 2 else -1 - place % min(400, len(changed))
        if how == "flip":
            changed[at] ^= 1 << (value % 8)
        elif how == "set":
            changed[at] = value
        elif how == "insert":
            changed.insert(at, value)
        elif how == "wide":
            changed[at : at + 4 or None] = bytes([value]) * 4
        else:
            del changed[at]
    return bytes(changed)


def outcome(read):
    """What `read` returns, or None and the finding of the error that comes out."""
    try:
        return read(), None
    except DataError as error:
        return None, error.finding


def read(path, take):
    """The bytes of all documents."""
    return sum(len(document.utf8) for document in read_documents([path], take))


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, cut=st.one_of(st.just(0), st.integers(0, 4000)), take=st.sampled_from([TEXTS, All()]))
@example(edits=[], cut=0, take=TEXTS)
def test_only_a_data_error_comes_out_of_a_mutated_file(tmp_path, name, edits, cut, take):
    path = tmp_path / name
    path.write_bytes(mutated(FILES[name], edits, min(cut, len(FILES[name]))))
    begun, before = time.monotonic(), pyarrow.total_allocated_bytes()
    for finding in (outcome(lambda: read(path, take))[1], outcome(lambda: file_form(path, take))[1]):
        assert finding is None or (finding.subject.startswith(str(path)) and finding.rule == "PREFLIGHT-025")
    assert time.monotonic() - begun < LONGEST
    assert pyarrow.total_allocated_bytes() - before < 1 << 20  # an error keeps nothing of the file


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=1200), header=st.sampled_from([b"", b"\x88\xd8\x34\x01\1\0\0\0", b"\xa1\xd9\x34\x01\7\0\0\0"]))
def test_only_a_data_error_or_known_ids_come_out_of_a_shard(tmp_path, raw, header):
    path = tmp_path / "a.bin"
    path.write_bytes(header + raw)
    ids, finding = outcome(lambda: [ids for document in shard_documents(path, size=50_000, end=0) for ids in document.tolist()])
    assert (finding.subject == str(path)) if ids is None else all(0 < number < 50_000 for number in ids)

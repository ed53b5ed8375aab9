"""Packed files: what gzip and zstd write is read whole, what is broken or a bomb is one error that names the file."""

import gzip
import io
import json
import struct
import zlib
from itertools import pairwise

import pytest
import zstandard
from apr_train.data.documents import file_form, read_documents, require_text_at_start
from apr_train.data.formats import bounds
from apr_train.errors import DataError

RECORDS = [{"text": f"text {number} " + "é" * number} for number in range(300)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
TEXTS = [record["text"] for record in RECORDS]


def many(pack):
    """Several members or frames, one of them empty, cut inside a line and a character."""
    places = [0, 1, 700, 700, len(LINES) // 2, len(LINES)]
    return b"".join(pack(LINES[begin:end]) for begin, end in pairwise(places)) + pack(b"")


def with_checksum(raw):
    return zstandard.ZstdCompressor(write_checksum=True).compress(raw)


PACKS = {".gz": gzip.compress, ".zst": with_checksum}
SKIPPABLE = struct.pack("<II", 0x184D2A50, 3) + b"abc"


def texts(path):
    return [document.text for document in read_documents([path])]


@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "array.json", "a.py", "a.md"])
def test_a_packed_file_is_read_as_the_file_in_it(tmp_path, suffix, name):
    raw = json.dumps(RECORDS).encode() if name == "array.json" else LINES
    plain, packed = tmp_path / name, tmp_path / f"{name}{suffix}"
    plain.write_bytes(raw)
    packed.write_bytes(PACKS[suffix](raw))
    assert texts(packed) == texts(plain) == ([LINES.decode()] if name in ("a.py", "a.md") else TEXTS)
    first = next(iter(read_documents([packed]))).source
    assert first == str(packed) + next(iter(read_documents([plain]))).source.removeprefix(str(plain))


@pytest.mark.parametrize("suffix", PACKS)
def test_all_members_and_frames_are_read(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(many(PACKS[suffix]))
    assert texts(path) == TEXTS


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("padded.jsonl.gz", gzip.compress(LINES) + bytes(512)),
        ("padded.jsonl.gz", gzip.compress(LINES) + bytes(512) + gzip.compress(b"")),
        ("skippable.jsonl.zst", SKIPPABLE + zstandard.compress(LINES) + SKIPPABLE),
        ("streamed.jsonl.zst", zstandard.ZstdCompressor().stream_reader(io.BytesIO(LINES)).read()),  # of no stated size
        ("lines.jsonl", gzip.compress(LINES)),  # a name says what is in it, not how it is packed
        ("plain.jsonl.gz", LINES),  # unpacked on its way, as browsers do
        ("PLAIN.JSONL.GZ", gzip.compress(LINES)),
    ],
)
def test_archives_as_programs_leave_them_are_read(tmp_path, name, raw):
    path = tmp_path / name
    path.write_bytes(raw)
    assert texts(path) == TEXTS


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json"])
def test_a_packed_file_that_breaks_off_is_named(tmp_path, suffix, name):
    whole = PACKS[suffix](LINES)
    path = tmp_path / f"{name}{suffix}"
    for size in (0, 1, 2, 3, 5, 17, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="a damaged archive") as caught:
            texts(path)
        finding = caught.value.finding
        assert (finding.rule, finding.subject, finding.found) == ("PREFLIGHT-025", str(path), "it breaks off")


@pytest.mark.parametrize("suffix", PACKS)
def test_a_checksum_that_is_wrong_and_bytes_behind_an_archive_are_errors(tmp_path, suffix):
    whole = PACKS[suffix](LINES)
    place = -6 if suffix == ".gz" else -2  # in the CRC-32 before the size; in the last four bytes
    path = tmp_path / f"a.jsonl{suffix}"
    wrong = bytearray(whole)
    wrong[place] ^= 1
    for raw in (bytes(wrong), whole + b"behind it"):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="a damaged archive") as caught:
            texts(path)
        assert caught.value.finding.subject == str(path)


def test_the_line_of_a_fault_in_a_packed_file_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n{oops\n'))
    with pytest.raises(DataError, match="not JSON") as caught:
        texts(path)
    assert caught.value.finding.where == f"{path}:2"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "caf\xe9"}\n'))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        texts(path)
    assert caught.value.finding.where == f"{path}:2"


def zeros_by_gzip(size):
    packer = zlib.compressobj(9, wbits=31)
    block = b" " * (1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json"])
@pytest.mark.parametrize("suffix", PACKS)
def test_a_bomb_is_refused_when_it_passes_its_allowance(tmp_path, monkeypatch, suffix, name):
    monkeypatch.setattr(bounds, "ALWAYS_ALLOWED", 1 << 22)
    monkeypatch.setattr("apr_train.data.formats.records.JUDGED", 1 << 16)
    size = 1 << 25
    raw = zeros_by_gzip(size) if suffix == ".gz" else zstandard.compress(b" " * size, 19)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(raw)
    assert len(raw) * bounds.LARGEST_RATIO < size
    with pytest.raises(DataError, match="unpacks to more than a text does") as caught:
        texts(path)
    finding = caught.value.finding
    assert (finding.rule, finding.subject) == ("PREFLIGHT-025", str(path))
    assert "-dk" in finding.hint


def test_the_absolute_bounds_hold_whatever_the_ratio(tmp_path, monkeypatch):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(LINES))
    monkeypatch.setattr("apr_train.data.formats.packed.LARGEST_PACKED_TEXT", 1000)
    with pytest.raises(DataError, match="a packed text that is too long"):
        texts(path)
    lines = tmp_path / "a.jsonl.gz"
    lines.write_bytes(gzip.compress(LINES))
    assert texts(lines) == TEXTS
    monkeypatch.setattr(bounds, "LARGEST_UNPACKED", 1000)
    with pytest.raises(DataError, match="unpacks to more than a text does"):
        texts(lines)


def test_a_text_as_repetitive_as_people_have_is_below_the_ratio():
    """A log with a counter in each line, which is more repetitive than any text that is worth learning from."""
    log = "".join(f"2026-01-01 00:00:00 INFO request {number} done in 12 ms\n" for number in range(30_000)).encode()
    for packed in (gzip.compress(log, 9), zstandard.compress(log, 12)):
        assert len(log) < bounds.LARGEST_RATIO * len(packed)


def test_a_window_larger_than_the_bound_is_refused_with_a_command(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packer.compress(LINES) + packer.flush())
    with pytest.raises(DataError, match="too much memory") as caught:
        texts(path)
    assert "zstd -dk --long=31" in caught.value.finding.hint


def test_progress_is_told_in_bytes_of_the_packed_file(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(many(with_checksum))
    told = []
    for _ in read_documents([path], done=told.append):
        pass
    assert sum(told) == path.stat().st_size


def test_the_start_of_a_packed_text_is_looked_at_unpacked(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(LINES))
    assert require_text_at_start(path, 100) == 100
    assert file_form(path) == "text"
    path.write_bytes(gzip.compress(b"caf\xe9" + LINES))
    with pytest.raises(DataError, match="not UTF-8"):
        require_text_at_start(path, 100)

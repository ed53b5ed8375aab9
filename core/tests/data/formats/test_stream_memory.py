"""What reading a large file costs in memory, in a process of its own: a part of it at a time, whatever its format."""

import gzip
import json
import random
import subprocess
import sys
import zlib

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

ROWS = 20_000
WORDS = ["alpha", "be", "gamma", "delta", "of", "the", "and", "in", "x1", "return", "self", "value"]
DRAW = random.Random(0)
LINES = [" ".join(DRAW.choices(WORDS, k=12)) + "\n" for _ in range(1000)]
SIZE = ROWS * 80 * sum(map(len, LINES)) // len(LINES)
"""About 90 MB of text."""
BOUND = 40_000_000
"""Of it in memory at a time: one batch, or what is read ahead, and what the libraries keep."""
SCRIPT = """
import sys
import zlib
from pathlib import Path
import pyarrow.parquet
from apr_train.data.documents import read_documents

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

small, large = sys.argv[1:]
assert sum(1 for _ in read_documents([Path(small)])) == 1  # what is allocated once
before = peak()
read = sum(len(document.utf8) for document in read_documents([Path(large)]))
print(peak() - before, read)
"""


def texts(rows):
    return ("".join(DRAW.choices(LINES, k=80)) for _ in range(rows))


def lines(rows):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts(rows)).encode()


def parquet(path, rows, **options):
    table = pyarrow.table({"text": list(texts(rows)), "other": ["x" * 1000] * rows})
    pyarrow.parquet.write_table(table, path, **options)


def arrow(new, path, rows, **options):
    batches = pyarrow.table({"text": list(texts(rows))}).to_batches(max_chunksize=1000)
    with new(path, batches[0].schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)


WRITERS = {
    "a.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows), 1)),
    "a.jsonl.zst": lambda path, rows: path.write_bytes(zstandard.compress(lines(rows), 1)),
    "a.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(list(texts(rows))).encode(), 1)),
    "dictionary.parquet": lambda path, rows: parquet(path, rows),
    "plain.parquet": lambda path, rows: parquet(path, rows, use_dictionary=False, compression="none"),
    "file.arrow": lambda path, rows: arrow(pyarrow.ipc.new_file, path, rows),
    "lz4.arrow": lambda path, rows: arrow(pyarrow.ipc.new_stream, path, rows, compression="lz4"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="a process's own peak is to be had from /proc only")
@pytest.mark.parametrize("name", WRITERS)
def test_a_large_file_is_read_a_part_at_a_time(tmp_path, name):
    small, large = tmp_path / f"small-{name}", tmp_path / name
    WRITERS[name](small, 1)
    WRITERS[name](large, ROWS)
    command = [sys.executable, "-c", SCRIPT, str(small), str(large)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    grown, read = map(int, result.stdout.split())
    assert read > 0.9 * SIZE
    assert grown < BOUND


BOMB_BOUND = 300_000_000
"""`ALWAYS_ALLOWED` of text as bytes, and once more while it is taken apart; the bombs hold gigabytes."""
BOMB_SCRIPT = SCRIPT.replace("read = sum", "from apr_train.errors import DataError\ntry:\n    sum").replace(
    "print(peak() - before, read)", "except DataError as error:\n    print(peak() - before, error.finding.problem)"
)


def zstd_bomb(path):
    """A frame of raw bytes: a header of a window of 8 MB, then run-length blocks of 128 kB of spaces in 4 bytes each."""
    blocks = (1 << 31) // (1 << 17)
    block = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b" "
    last = ((1 << 17) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b" "
    path.write_bytes(bytes.fromhex("28b52ffd") + bytes([0x00, 0x68]) + block * (blocks - 1) + last)


def gzip_bomb(path):
    packer = zlib.compressobj(9, wbits=31)
    path.write_bytes(b"".join(packer.compress(b" " * (1 << 20)) for _ in range(1 << 10)) + packer.flush())


def page_bomb(path):
    """One text of half a gigabyte."""
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * (1 << 29)]}), path, **options)


def dictionary_bomb(path):
    """A dictionary of one text of a megabyte, and ten thousand rows of it."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 10_000, pyarrow.int32()), ["a" * 1_000_000])
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path, compression="zstd")


def arrow_bomb(path):
    """One batch of half a gigabyte."""
    batch = pyarrow.record_batch({"text": ["a" * 1_000_000] * 500})
    with pyarrow.ipc.new_stream(path, batch.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)


TOO_MUCH = "unpacks to more than a text does"
BOMBS = {
    "a.jsonl.zst": zstd_bomb,
    "a.txt.zst": zstd_bomb,
    "a.json.zst": zstd_bomb,
    "a.txt.gz": gzip_bomb,
    "dictionary.parquet": dictionary_bomb,
    "page.parquet": page_bomb,
    "a.arrow": arrow_bomb,
}


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.skipif(sys.platform != "linux", reason="a process's own peak is to be had from /proc only")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_fill_the_memory(tmp_path, name):
    small, large = tmp_path / "small.jsonl", tmp_path / name
    WRITERS["a.jsonl"](small, 1)
    BOMBS[name](large)
    command = [sys.executable, "-c", BOMB_SCRIPT, str(small), str(large)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    grown, _, found = result.stdout.strip().partition(" ")
    assert found == TOO_MUCH
    assert int(grown) < BOMB_BOUND

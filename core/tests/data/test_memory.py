"""What a large document costs in memory, from its tokenizer to its tokens, in a process of its own."""

import subprocess
import sys

import pytest

LINE = "alpha be gamma delta of the and in x1 return self value"
SHAPES = {
    "one line": (LINE + " ") * 150_000,
    "wide characters": (LINE + " 🎈\n") * 140_000,
}
SCRIPT = """
import sys
from pathlib import Path
from apr_train.data.bpe import train_bpe
from apr_train.data.corpus import load_corpus
from apr_train.data.tokenizer import build_tokenizer
from apr_train.run.settings import DataSettings

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

before = peak()
settings, folder = DataSettings(data=(sys.argv[1],)), Path(sys.argv[2])
tokenizer = build_tokenizer(train_bpe(settings, 300, cache_dir=folder, notice=str))
corpus = load_corpus(settings, tokenizer, cache_dir=folder, notice=str)
print(peak() - before, corpus.train.text_bytes, corpus.train.counts.get("forced_cuts", 0))
"""
OF_THE_TEXT, FIXED = 3, 90_000_000
"""The text once as bytes, its tokens in the page cache, and what is in work at one time; 97 times the text was the fault."""


@pytest.mark.skipif(sys.platform != "linux", reason="a process's own peak is to be had from /proc only")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_document_costs_little_more_than_its_bytes(tmp_path, shape):
    text = SHAPES[shape].encode()
    path = tmp_path / "big.txt"
    path.write_bytes(text)
    command = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    grown, learnt, cuts = map(int, result.stdout.split())
    assert (learnt > 0.9 * len(text), cuts) == (True, 0)
    assert grown < OF_THE_TEXT * len(text) + FIXED

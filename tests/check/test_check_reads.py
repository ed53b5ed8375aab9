"""A check reads the header and nothing else, however much data there is."""

import os
import subprocess
import sys

import pytest
from apr_train.checkpoint.open import open_checkpoint
from apr_train.errors import FormatError

DATA = 256 * 2**20
SLACK = 64 * 2**20
PROGRAM = """
import re, sys
from pathlib import Path
from apr_train.cli import cli
from apr_train.run.resident import resident_peak
try:
    cli(["check", sys.argv[1]])
except SystemExit as stop:
    assert not stop.code, stop.code
counted = int(re.search(r"rchar: (\\d+)", Path("/proc/self/io").read_text()).group(1))
print(counted, resident_peak(), "torch" in sys.modules)
"""


def measure(path):
    """Bytes that the process read through system calls, its peak resident memory (a touched map counts), torch or not."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    read, resident, torch = done.stdout.splitlines()[-1].split()
    return int(read), int(resident), torch == "True"


@pytest.fixture
def large(build, spec):
    """256 MiB of weights and a tokenizer of 151,665 entries; a byte of data is wrong, so the checksum does not match."""
    config = build.config("qwen2", vocab_size=151_936, hidden_size=896, head_dim=64, num_hidden_layers=1)
    path = build.apr("qwen2", config, tokenizer=spec(151_665))
    with path.open("r+b") as file:
        file.seek(-(1 << 20), os.SEEK_END)
        file.write(b"\1")
    return path


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts what Linux counts")  # noqa: PTH110
def test_check_reads_the_header_and_no_data(large, build):
    assert large.stat().st_size > DATA
    small = measure(build.apr("qwen2", file="small.apr"))
    read, resident, torch = measure(large)
    assert read - small[0] < SLACK
    assert resident - small[1] < 2 * SLACK
    assert not torch


def test_damaged_data_is_seen_only_by_who_reads_it(large, check):
    assert check(large).exit_code == 0
    with pytest.raises(FormatError, match="checksum"), open_checkpoint(large, verify=True) as checkpoint:
        checkpoint.read("model.norm.weight")

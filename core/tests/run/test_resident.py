"""The most memory that a process has taken: its own."""

import mmap
import resource
import subprocess
import sys

import pytest
from apr_train.run import resident
from apr_train.run.resident import resident_peak

SIZE = 256 * 2**20
CHILD = "from apr_train.run.resident import resident_peak; print(resident_peak())"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own count")
def test_a_program_does_not_begin_with_the_memory_of_the_one_that_started_it():
    held = bytearray(SIZE)
    held[:: mmap.PAGESIZE] = b"\1" * len(held[:: mmap.PAGESIZE])
    assert resident_peak() >= SIZE
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    assert 2**20 < int(done.stdout) < SIZE / 2


def test_where_the_system_does_not_say_getrusage_does(monkeypatch, tmp_path):
    monkeypatch.setattr(resident, "_STATUS", tmp_path / "none")
    factor = 1 if sys.platform == "darwin" else 1024
    assert resident_peak() == factor * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

"""`make test` says which files it waited for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW = "import time, pytest\n@pytest.mark.parametrize('n', range(2))\ndef test_it(n): time.sleep(0.2)\n"


@pytest.mark.parametrize("processes", [(), ("-n", "2", "--dist", "loadfile")], ids=["alone", "xdist"])
def test_the_slowest_files_come_first_with_all_of_their_tests(tmp_path, processes):
    (tmp_path / "test_slow.py").write_text(SLOW)
    (tmp_path / "test_fast.py").write_text("def test_it(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.slowest_files", *processes, "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    found = re.findall(r"^ +(\d+\.\d) s  (\S+)$", done.stdout, re.M)
    assert [file for _, file in found] == ["test_slow.py", "test_fast.py"], done.stdout + done.stderr
    assert float(found[0][0]) >= 0.4


def test_make_loads_the_plugin():
    assert "-p tests.slowest_files" in (ROOT / "Makefile").read_text()

"""A process whose standard streams were closed behaves like one whose output nobody reads."""

import subprocess
import sys

import pytest

CODE = """
from apr_train.cli.streams import open_closed_streams
open_closed_streams()
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
print("printed")
sys.stderr.write("said")
os.write(file, f"{file > 2} {sys.stdout.isatty()} {sys.stdin.read()!r}".encode())
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_empty_silent_and_no_other_files(tmp_path, closed):
    command = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", CODE, tmp_path / "file"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "True False ''"
    assert done.stdout == ("" if ">&-" in closed.split() else "printed\n")


def test_a_command_runs_without_a_standard_output():
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-c", "from apr_train.cli import main; main()", "plugins"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")

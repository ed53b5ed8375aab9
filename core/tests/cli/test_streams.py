"""A process whose standard streams were closed behaves like one whose output nobody reads."""

import os
import subprocess
import sys
from pathlib import Path

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


MAIN = "from apr_train.cli import main; main()"


def shell(line, *arguments, **environment):
    command = ["sh", "-c", line, "sh", sys.executable, "-c", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=variables)


def test_a_reader_that_has_enough_is_no_fault():
    done = shell('{ "$@"; echo "status $?" >&2; } | true', MAIN, "plugins")
    assert done.stderr == "status 0\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_that_is_all_there_is_fails_on_a_full_disk_in_one_message():
    done = shell('"$@" > /dev/full', MAIN, "plugins")
    assert (done.returncode, done.stderr) == (1, "Standard output was lost (No space left on device), and nothing else.\n")


def test_a_terminal_that_has_no_arrow_gets_its_number():
    code = "from apr_train.cli.streams import Streams; s = Streams(); print('a → b'); s.close(0, trains=False)"
    assert shell('"$@"', code, PYTHONIOENCODING="ascii:strict").stdout == "a \\u2192 b\n"


PRINTS = """
import ctypes, os, sys
from apr_train.family.its_output import printed_on_stderr
print("one", flush=True)
with printed_on_stderr():
    print("print")
    os.write(1, b"descriptor\\n")
    ctypes.CDLL(None).printf(b"from C\\n")
print("two")
"""


@pytest.mark.parametrize("closed", ["", ">&-"])
def test_what_a_plugin_prints_goes_to_standard_error(closed):
    code = PRINTS if not closed else "from apr_train.cli.streams import open_closed_streams as o\no()\n" + PRINTS
    done = shell(f'"$@" {closed}', code)
    assert done.stdout == ("" if closed else "one\ntwo\n")
    assert sorted(done.stderr.split("\n")) == ["", "descriptor", "from C", "print"]

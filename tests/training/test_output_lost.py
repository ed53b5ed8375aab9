"""The output is not the result: a run goes on to its end without it, and says so where it can."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = (sys.executable, "-c", "from apr_train.cli import main; main()")
RUN = (
    *("--arch", "llama370m", "--preset", "tiny", "--sequence-length", "32", "--val-batches", "1", "--sample-tokens", "2"),
    *("--threads", "1", "--steps", "30", "--log-every", "1", "--save-every", "0", "--precision", "fp32"),
)


def assert_ended(place, name):
    assert len(place.curve(name)) == 31
    assert (place.run(name) / "model.apr").is_file()


def test_a_run_whose_reader_goes_away_ends_and_says_so(place):
    """The reader takes a line, as head does; the terminal is one without an arrow."""
    command = [*MAIN, "--data", place.corpus, *RUN, "--run", "pipe"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place.folder, env=environment
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "Standard output was lost (Broken pipe), and nothing else.\n")
    assert_ended(place, "pipe")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("streams", ["> /dev/full", "> /dev/full 2>&1", ">&- 2>&-"])
def test_a_run_whose_log_has_no_room_ends_all_the_same(place, streams):
    command = ["sh", "-c", f'"$@" {streams}', "sh", *MAIN, "--data", place.corpus, *RUN, "--run", "full"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place.folder, check=True)
    told = "Standard output was lost (No space left on device), and nothing else.\n"
    assert done.stderr == (told if streams == "> /dev/full" else "")
    assert_ended(place, "full")

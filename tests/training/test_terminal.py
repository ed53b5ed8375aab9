"""A whole run on a real terminal of 60 columns: nothing is cut inside a word, and a plain one has no control sequence."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import pytest

WIDTH = 60
RUN = (
    "--arch",
    "llama370m",
    "--preset",
    "tiny",
    "--steps",
    "3",
    "--sequence-length",
    "32",
    "--threads",
    "1",
    "--run",
    "r",
    "--sample-tokens",
    "0",
)


def shown(folder, corpus, **environment):
    """What a run writes to the terminal that is its standard output and its standard error."""
    main, side = pty.openpty()
    ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
    code = "from apr_train.cli import main; main()"
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    variables |= {"TERM": "xterm", "APR_TRAIN_CACHE": str(folder / "cache"), **environment}
    command = [sys.executable, "-c", code, *RUN, "--data", str(corpus)]
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, cwd=folder, env=variables)
    os.close(side)
    parts = []
    try:
        while part := os.read(main, 65536):
            parts.append(part)
    except OSError:  # the other side is closed: the run has ended
        pass
    os.close(main)
    assert process.wait(timeout=60) == 0
    return b"".join(parts).decode()


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["drawn on", "no colour", "dumb"])
def test_a_run_on_a_terminal(tmp_path, environment):
    (tmp_path / "text").mkdir()
    for number in range(60):
        (tmp_path / "text" / f"{number}.txt").write_text(f"The text of document {number} says a number: {number * 7919}. " * 20)
    text = shown(tmp_path, tmp_path / "text", **environment)
    assert bool("\x1b" in text) is (not environment)
    rows = re.split(r"[\r\n]+", re.sub(r"\x1b\[\??\d*[A-Za-z]", "", text))
    assert not [row for row in rows if len(row) > WIDTH and " " in row.strip()]
    assert "validation loss" in text
    assert "apr-train export runs/r -o exported" in text
    assert rows[-2].strip() == "apr-train export runs/r -o exported"

"""45 seconds of the fuzzer: no file of any kind brings out anything but the right answer or an error; `make fuzz` goes on."""

import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.inputs import KINDS

SEED = int(os.environ.get("FUZZ_SEED", "0"))
SECONDS = float(os.environ.get("FUZZ_SECONDS", "45"))


def test_no_file_of_any_kind_breaks_a_command():
    words = [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS), "--seed", str(SEED)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line.split("|")[1].strip(): int(line.split("|")[2].replace(",", "")) for line in done.stdout.splitlines()[2:]}
    assert counts.keys() == {kind.title for kind in KINDS.values()}
    assert all(counts.values())

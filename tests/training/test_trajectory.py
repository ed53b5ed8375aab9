"""The first losses of each family's tiny preset, as they were when they were written down.

A change that moves one of them changed what is learnt: CHANGELOG.md says so, and why.
`python tests/training/test_trajectory.py`
prints them anew.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TRAJECTORIES = {
    "llama370m": {
        "loss": [5.801042, 5.641237, 5.195279, 4.93762, 4.704291, 4.463966, 4.449768, 4.220107],
        "val_loss": [5.785172, 4.674274, 4.176515],
    },
    "qwen2": {
        "loss": [5.819922, 5.421955, 4.917981, 4.493593, 4.301048, 4.106105, 3.942922, 3.92342],
        "val_loss": [5.818024, 4.244753, 3.872467],
    },
    "codebert": {
        "loss": [5.855724, 5.76152, 5.612298, 5.47481, 5.352873, 5.297327, 5.264955, 5.203424],
        "val_loss": [5.888767, 5.376675, 5.193323],
    },
}
"""Of steps 1 to 8, and of the validations before step 1 and after steps 4 and 8, in nats."""
TOLERANCE = 1e-4
"""Relative: processors add in other orders."""
STEPS = 8
TEXT = "".join(
    f"def scale_{number}(values, factor={number % 7}):\n    return [value * factor + {number} for value in values]\n\n\n"
    for number in range(300)
)
SETTINGS = (
    *("--preset", "tiny", "--steps", STEPS, "--sequence-length", 64, "--batch-size", 4, "--accumulate", 2),
    *("--precision", "fp32", "--threads", 1, "--device", "cpu", "--seed", 7, "--lr", 2e-3, "--warmup-steps", 2),
    *("--val-every", 4, "--val-batches", 2, "--save-every", 0, "--sample-tokens", 0, "--run", "guard"),
)
VOCABULARY = {"llama370m": 320, "qwen2": 320, "codebert": 340}


def losses(family, folder):
    """Every `loss` and every `val_loss` of a run in a process of its own, one thread, not compiled."""
    (folder / "text").mkdir()
    for part in range(20):
        (folder / "text" / f"{part}.py").write_text(f"# part {part}\n" + TEXT[part * 600 : part * 600 + 2000])
    line = ["--arch", family, "--vocab-size", VOCABULARY[family], "--data", "text", *SETTINGS]
    command = [sys.executable, "-c", "from apr_train.cli import main; main()", *map(str, line)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "APR_TRAIN_CACHE": str(folder / "cache")}
    subprocess.run(command, check=True, cwd=folder, env=variables, capture_output=True, timeout=120)
    lines = [json.loads(line) for line in (folder / "runs" / "guard" / "metrics.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines if name in line] for name in ("loss", "val_loss")}


@pytest.mark.parametrize("family", VOCABULARY)
def test_the_first_losses_are_what_they_were(family, tmp_path):
    found = losses(family, tmp_path)
    for name, expected in TRAJECTORIES[family].items():
        assert found[name] == pytest.approx(expected, rel=TOLERANCE, abs=0)


if __name__ == "__main__":
    for name in VOCABULARY:
        with tempfile.TemporaryDirectory() as folder:
            print(name, losses(name, Path(folder)))  # noqa: T201  # for whoever has to write them down anew

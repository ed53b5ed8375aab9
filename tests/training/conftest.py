"""Runs through the command line: a small corpus, a cache of its own, one folder a test."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from apr_train.cli import cli
from attrs import frozen
from click.testing import CliRunner
from safetensors.torch import load_file

MEASURED = {"tokens_per_s", "step_time", "mfu", "memory"}
SMALL = ("--sequence-length", "32", "--val-batches", "2", "--attention", "sdpa", "--sample-tokens", "4", "--threads", "1")
NAMES = ("alpha", "beta", "count", "index", "items", "name", "path", "result", "total", "value")


def write_corpus(folder, *, documents=40, seed=0):
    """Small Python-like files: regular enough to be learnt in seconds."""
    draw = random.Random(seed)
    folder.mkdir()
    for number in range(documents):
        lines = []
        for _ in range(draw.randint(3, 8)):
            one, two, three = (draw.choice(NAMES) for _ in range(3))
            lines += [f"def {one}_{two}({three}):", f"    {two} = {three} + {draw.randint(0, 9)}", f"    return {two}", ""]
        (folder / f"module_{number}.py").write_text("\n".join(lines))
    return folder


@frozen
class Place:
    """A folder to run commands in."""

    folder: Path
    corpus: Path

    def __call__(self, *args, code=0):
        """Run `apr-train …` in this process; returns its output."""
        result = CliRunner().invoke(cli, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.output

    def train(self, *args, code=0):
        """Train on the small corpus."""
        return self("--data", self.corpus, *SMALL, *args, code=code)

    def start(self, *args, env=None):
        """Start `apr-train …` as a process of its own."""
        command = [sys.executable, "-c", "from apr_train.cli import main; main()", *map(str, args)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder, env=env)

    def run(self, name):
        """The folder of a run."""
        return self.folder / "runs" / name

    def curve(self, name):
        """metrics.jsonl without what differs between equal runs."""
        lines = (self.run(name) / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key not in MEASURED} for line in lines]

    def assert_same_end(self, one, other, *, step):
        """Model, optimizer, position and metrics of two runs are equal, bit for bit."""
        assert self.curve(one) == self.curve(other)
        ends = [self.run(name) / f"step-{step:06d}" for name in (one, other)]
        for file in ("model.apr", "state.json"):
            assert (ends[0] / file).read_bytes() == (ends[1] / file).read_bytes()
        states = [load_file(end / "optimizer.safetensors") for end in ends]
        assert states[0].keys() == states[1].keys()
        for key, tensor in states[0].items():
            assert torch.equal(tensor, states[1][key])
        assert (self.run(one) / "model.apr").read_bytes() == (self.run(other) / "model.apr").read_bytes()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    write_corpus(folder / "corpus")
    (folder / "cache").mkdir()
    return folder


@pytest.fixture(autouse=True)
def determinism_as_before():
    """torch's flag is global, and a run that sets it would set it for every test after it."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def place(tmp_path, shared, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APR_TRAIN_CACHE", str(shared / "cache"))
    return Place(tmp_path, shared / "corpus")


@pytest.fixture(scope="session")
def taught(shared, tmp_path_factory):
    """model.apr of a tiny decoder that knows the small corpus."""
    folder = tmp_path_factory.mktemp("taught")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("APR_TRAIN_CACHE", str(shared / "cache"))
        place = Place(folder, shared / "corpus")
        args = ("--arch", "llama370m", "--preset", "tiny", "--run", "taught", "--precision", "fp32")
        place.train(*args, "--steps", "120", "--lr", "3e-3", "--batch-size", "8")
    return folder / "runs" / "taught" / "model.apr"


@pytest.fixture(scope="session")
def bases(shared, tmp_path_factory):
    """Arch → model.apr of its tiny preset with fresh weights, and the same as a folder that transformers opens."""
    folder, found = tmp_path_factory.mktemp("bases"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("APR_TRAIN_CACHE", str(shared / "cache"))
        place = Place(folder, shared / "corpus")
        for arch in ("qwen2", "llama370m", "codebert"):
            place.train("--arch", arch, "--preset", "tiny", "--run", arch, "--steps", "0", "--precision", "fp32")
            place("export", place.run(arch) / "model.apr", "-o", folder / arch)
            found[arch] = (place.run(arch) / "model.apr", folder / arch)
    return found

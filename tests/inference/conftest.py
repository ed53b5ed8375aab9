"""Two tiny models, a decoder that learnt a little Python and an encoder, both made by the command line."""

import json
import random
from pathlib import Path

import pytest
from apr_train.cli import cli
from attrs import frozen
from click.testing import CliRunner

NAMES = ("alpha", "beta", "count", "index", "items", "name", "path", "result", "total", "value")
SMALL = ("--preset", "tiny", "--precision", "fp32", "--sample-tokens", "0", "--threads", "1", "--batch-size", "8")


def write_corpus(folder, documents=40):
    """Small Python files, regular enough to be learnt in seconds."""
    draw = random.Random(0)
    folder.mkdir()
    for number in range(documents):
        lines = []
        for _ in range(draw.randint(3, 8)):
            one, two, three = (draw.choice(NAMES) for _ in range(3))
            lines += [f"def {one}_{two}({three}):", f"    {two} = {three} + {draw.randint(0, 9)}", f"    return {two}", ""]
        (folder / f"module_{number}.py").write_text("\n".join(lines))
    return folder


@frozen
class Answer:
    """What a command said."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self):
        return json.loads(self.stdout)


@frozen
class Models:
    """The folder with the corpus and both runs."""

    folder: Path

    @property
    def corpus(self):
        return self.folder / "corpus"

    @property
    def decoder(self):
        return self.folder / "runs" / "decoder"

    @property
    def encoder(self):
        return self.folder / "runs" / "encoder"

    def metrics(self, run):
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def call(*arguments, code=0, stdin=None):
    """`apr-train …` in this process."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def apr(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APR_TRAIN_CACHE", str(models.folder / "cache"))
    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("APR_TRAIN_CACHE", str(folder / "cache"))
        data = ("--data", write_corpus(folder / "corpus"), *SMALL)
        rows = ("--sequence-length", 64, "--val-batches", 2)
        call(*data, *rows, "--arch", "llama370m", "--run", "decoder", "--steps", 100, "--lr", "3e-3", "--save-every", 60)
        call(*data, *rows, "--arch", "codebert", "--run", "encoder", "--steps", 2, "--mask-probability", 0.3)
    return Models(folder)

"""`apr-train stamp` from the command line."""

import subprocess
import sys

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec, open_apr
from apr_train.cli import cli
from click.testing import CliRunner


@pytest.fixture
def file(tmp_path):
    with AprWriter(tmp_path / "x.apr", {"model_type": "x"}, [TensorSpec("a", "F32", (4,))]) as writer:
        writer.write("a", np.arange(4, dtype=np.float32))
    return tmp_path / "x.apr"


def invoke(*arguments):
    return CliRunner().invoke(cli, ["stamp", *map(str, arguments)])


def test_every_option_is_written_and_said(file):
    values = {"license": "MIT", "data-source": "a, b", "data-license": "CC0-1.0", "name": "n", "version": "1"}
    values |= {"author": "someone", "description": "Größe 多"}
    done = invoke(file, *(part for name, value in values.items() for part in (f"--{name}", value)))
    assert done.exit_code == 0, done.output
    with open_apr(file) as reader:
        written = {name: reader.raw_metadata[name.replace("-", "_")] for name in values}
    assert written == values
    assert all(value in done.output for value in values.values())


def test_the_old_value_is_said_and_repeating_writes_nothing(file):
    invoke(file, "--license", "ISC")
    assert "license: MIT (was ISC)" in invoke(file, "--license", "mit").output
    assert "nothing was written" in invoke(file, "--license", "mit").output


def test_an_unknown_licence_is_one_line_with_the_closest(file):
    before = file.read_bytes()
    done = invoke(file, "--license", "Apache 2.0")
    assert done.exit_code == 1
    assert "did you mean Apache-2.0?" in done.output
    assert file.read_bytes() == before


def test_nothing_to_set_is_a_usage_error(file):
    assert invoke(file).exit_code == 2


def test_a_checkpoint_of_another_kind_names_import(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    done = invoke(tmp_path / "x.gguf", "--license", "MIT")
    assert done.exit_code == 1
    assert "apr-train import" in done.output


def test_a_runs_folder_names_the_file_in_it(file, tmp_path):
    (tmp_path / "run").mkdir()
    file.rename(tmp_path / "run/model.apr")
    done = invoke(tmp_path / "run", "--license", "MIT")
    assert done.exit_code == 1
    assert f"Give the file in it: {tmp_path / 'run/model.apr'}" in done.output


def test_help_has_an_example_and_the_command_needs_no_torch(file):
    assert "Example: apr-train stamp" in invoke("--help").output
    code = "import sys; from apr_train.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "stamp", str(file), "--license", "MIT"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"

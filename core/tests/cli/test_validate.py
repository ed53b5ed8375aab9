"""`apr-train validate` on whole, damaged and foreign files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.cli.validate import command
from click.testing import CliRunner


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "x.apr"
    with AprWriter(path, {}, [TensorSpec("a", "F32", (4,)), TensorSpec("b", "BF16", (4,))]) as writer:
        writer.write("a", np.array([1, np.nan, np.inf, -np.inf], np.float32))
        writer.write("b", np.array([0x3F80, 0x7FC0, 0x7F80, 0xFF80], np.uint16))
    return path


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_whole_file_is_valid(checkpoint):
    code, output = run(checkpoint)
    assert code == 0
    assert "valid apr, 2 tensors" in output
    assert "every value" not in output


def test_values_that_are_not_finite_are_counted_when_asked(checkpoint):
    code, output = run(checkpoint, "--data", "--json")
    assert code == 1
    report = json.loads(output)
    assert [(item["where"].split("[")[1], item["found"]) for item in report["findings"]] == [
        ("a]", "1 NaN, 2 infinite"),
        ("b]", "1 NaN, 2 infinite"),
    ]
    assert report["valid"] is False


def test_a_damaged_checksum_and_bad_values_are_reported_together(checkpoint):
    raw = checkpoint.read_bytes()
    checkpoint.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    code, output = run(checkpoint, "--data", "--json")
    assert code == 1
    assert [item["id"] for item in json.loads(output)["findings"]] == ["APR-NOT-FINITE", "APR-NOT-FINITE", "APR-CHECKSUM"]


def test_a_truncated_file_is_a_finding_not_a_crash(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-64])
    code, output = run(checkpoint)
    assert code == 1
    assert "APR-STRUCTURE" in output
    assert "truncated" in output


def test_a_file_that_is_no_checkpoint_is_a_finding(tmp_path):
    (tmp_path / "x").write_bytes(b"nothing that anyone knows")
    code, output = run(tmp_path / "x", "--json")
    assert code == 1
    assert json.loads(output)["format"] is None


def test_safetensors_are_scanned_too(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.array([1.0, np.nan], np.float32)}, tmp_path / "model.safetensors")
    assert run(tmp_path / "model.safetensors")[0] == 0
    code, output = run(tmp_path / "model.safetensors", "--data")
    assert code == 1
    assert "1 NaN" in output


def test_it_works_as_a_command_without_torch(checkpoint):
    program = (
        "import sys; from apr_train.cli import main; sys.argv = ['apr-train', 'validate', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", program, checkpoint], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, None), done.stderr
    assert "valid apr" in done.stdout
    assert done.stderr == ""

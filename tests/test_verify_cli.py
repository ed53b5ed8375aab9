"""`apr-train verify`: a certificate that is made, holds, is missing, damaged, or of other code."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from apr_train.cli import cli
from apr_train.family.certificate import NAME, read_certificate
from click.testing import CliRunner

PACKAGE = Path(importlib.util.find_spec("apr_train_llama370m").origin).parent


def run(*arguments, path=None):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **({} if path is None else {"PYTHONPATH": str(path)})}
    code = "from apr_train.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=False, capture_output=True, text=True, env=variables
    )


@pytest.fixture
def copy(tmp_path):
    """A copy of a plugin's package that stands before the installed one."""
    shutil.copytree(PACKAGE, tmp_path / "site" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "site" / PACKAGE.name


def test_a_certificate_is_made_shipped_and_holds(copy, tmp_path):
    made = run("verify", "llama370m", "--against", "transformers", "-o", copy / NAME, path=copy.parent)
    assert made.returncode == 0, made.stderr
    assert "float64, eager" in made.stdout
    assert "10 optimizer steps in float32" in made.stderr
    assert read_certificate(copy / NAME).against.startswith("transformers ")
    listed = run("plugins", "--json", path=copy.parent)
    (line,) = [item for item in json.loads(listed.stdout)["families"] if item["name"] == "llama370m"]
    assert line["certificate"]["state"] == "verified"
    again = run("verify", "llama370m", "--check", path=copy.parent)
    assert (again.returncode, again.stderr.splitlines()[-1]) == (0, "the certificate holds"), again.stderr
    assert "certified in the same environment" in again.stdout


def _remove(package):
    (package / NAME).unlink(missing_ok=True)


def _damage(package):
    path = package / NAME
    path.write_text(path.read_text().replace('"format": 1', '"format": 1, "more": 2'))


def _change(package):
    with (package / "__init__.py").open("a") as file:
        file.write("\n# changed\n")


@pytest.mark.parametrize(
    ("spoil", "state", "told"),
    [
        (_remove, "none", "no certificate lies beside the plugin's code"),
        (_damage, "damaged", "the certificate is damaged, found the content is not the one that was sealed"),
        (_change, "changed", "the certificate is of another version, found the plugin's files are other ones"),
    ],
)
def test_what_cannot_be_measured_again_is_one_message(copy, spoil, state, told):
    spoil(copy)
    done = run("verify", "llama370m", "--check", path=copy.parent)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert told in line
    assert line.endswith("Make one: apr-train verify llama370m --against transformers -o FILE.")
    listed = run("plugins", "--json", path=copy.parent)
    (item,) = [item for item in json.loads(listed.stdout)["families"] if item["name"] == "llama370m"]
    assert item["certificate"]["state"] == state


def test_a_plugin_that_fails_gets_no_certificate(copy, tmp_path):
    path = copy / "__init__.py"
    path.write_text(path.read_text().replace('"370m": 322_045_952', '"370m": 322_045_953'))
    done = run("verify", "llama370m", "-o", tmp_path / "c.json", path=copy.parent)
    assert done.returncode == 1
    assert "parameter count, 370m" in done.stderr
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("lama370m",), "llama370m"),
        (("llama370m", "--check", "-o", "x"), "leave --against and --output out"),
        (("llama370m", "--against", "jax"), "'jax' is not"),
    ],
)
def test_wrong_use_is_one_message(arguments, told):
    done = CliRunner().invoke(cli, ["verify", *arguments])
    assert done.exit_code != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr

"""The judge of fault-reproducing scripts: what has to be printed, what must not, and how large a number may be."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def cases():
    spec = importlib.util.spec_from_file_location("cases", TOOLS / "cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("said", "faults"),
    [
        ("ready\n10 MB\n", []),
        ("10 MB", ["lacks ^ready"]),
        ("ready\nTraceback", ["has Traceback"]),
        ("ready 10 MB\nand 11 MB", ["11 is more than 10"]),
    ],
)
def test_a_script_is_judged_by_what_it_prints(cases, said, faults):
    expected = {"has": ["^ready"], "lacks": ["Traceback"], "limit": [r"(\d+) MB", 10]}
    assert cases.judge(expected, said) == faults


def test_a_script_without_expectations_is_not_as_expected(cases):
    assert cases.judge(None, "anything") != []


def test_a_script_is_ported_to_the_modules_of_today_and_runs_this_command(cases, tmp_path):
    script = tmp_path / "01.sh"
    script.write_text("echo 'from apr_train.formats.source import open_checkpoint'; $APR --version; echo oh >&2; exit 3\n")
    assert re.fullmatch(
        r"from apr_train.checkpoint.open import open_checkpoint\napr-train.*\noh\n", cases.run(script), re.DOTALL
    )


def test_every_expectation_can_be_read_and_has_a_title():
    for number, expected in tomllib.loads((TOOLS / "cases.toml").read_text()).items():
        assert expected["title"], number
        assert expected.get("has") or expected.get("lacks"), number
        patterns = [*expected.get("has", ()), *expected.get("lacks", ()), *expected.get("limit", ())[:1]]
        assert all(re.compile(pattern) for pattern in patterns)

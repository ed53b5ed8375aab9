"""`apr_train.train` in a program that torchrun starts several times."""

import json
from pathlib import Path

import pytest
from apr_train.run.folder import PROFILE

from tests.processes.compared import started

pytestmark = pytest.mark.slow  # a minute of processes that start
PROGRAM = Path(__file__).with_name("program.py")


@pytest.fixture(scope="module")
def outcomes(place):
    done = started(2, place, PROGRAM, place / "text", timeout=120)
    assert done.stdout == ""
    return [json.loads((place / f"outcome-{rank}.json").read_text()) for rank in range(2)]


def test_each_process_gets_the_run_and_the_first_one_the_notices(outcomes):
    first, second = (found["traced"] for found in outcomes)
    assert first.pop("notices") > second.pop("notices") == 0
    assert first == second
    assert first["steps"] == 4
    assert first["path"]


def test_the_time_is_over_for_all_at_once(outcomes):
    first, second = (found["timed"] for found in outcomes)
    assert 0 < first["steps"] == second["steps"] < 100_000
    assert first["path"]


def test_the_first_process_writes_the_trace(outcomes, place):
    assert sorted(item.name for item in (place / "runs" / "traced" / PROFILE).iterdir())


def test_a_finished_run_is_given_back(outcomes):
    assert [found["again"]["steps"] for found in outcomes] == [4, 4]


def test_a_fault_is_told_by_the_first(outcomes, place):
    first, second = (found["refused"]["error"] for found in outcomes)
    assert "fewer rows than processes" in first
    assert "another process" in second
    assert not (place / "runs" / "refused").exists()

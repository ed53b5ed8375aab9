"""How many threads a run takes where nobody says."""

import os

import pytest
import torch
from apr_train.model.threads import default_threads, physical_cores, processor_share


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Lays out processors and control groups as Linux shows them, for a process that may use processors 0 to 3."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    return tmp_path


def lay_out(folder, siblings):
    for number, text in enumerate(siblings):
        place = folder / f"cpu{number}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("siblings", "cores"),
    [(("0", "1", "2", "3"), 4), (("0-1", "0-1", "2-3", "2-3"), 2), (("0,4", "1,5", "2,6", "3,7"), 4)],
)
def test_threads_of_one_core_count_once(machine, siblings, cores):
    assert physical_cores(lay_out(machine, siblings)) == cores


def test_a_system_that_does_not_say_is_no_limit(machine):
    assert physical_cores(machine) is None
    assert processor_share(machine, machine / "none") is None


@pytest.mark.parametrize(
    ("limits", "share"),
    [
        ({"": "max 100000"}, None),
        ({"": "200000 100000"}, 2),
        ({"": "max 100000", "box": "150000 100000"}, 2),
        ({"box": "400000 100000", "box/inner": "50000 100000"}, 1),
        ({"box": "100000 100000", "box/inner": "max 100000"}, 1),
    ],
)
def test_the_quota_of_a_container_is_a_limit_its_parents_too(machine, limits, share):
    groups = machine / "cgroup"
    (groups / "box" / "inner").mkdir(parents=True)
    for name, text in limits.items():
        (groups / name / "cpu.max").write_text(f"{text}\n")
    own = machine / "own"
    own.write_text("0::/box/inner\n" if "box/inner" in limits else "0::/box\n" if "box" in limits else "0::/\n")
    assert processor_share(groups, own) == share


def test_the_variable_of_openmp_is_the_users_word(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("apr_train.model.threads.physical_cores", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert default_threads() == 7
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert default_threads() == 1

"""Whatever is wrong with a launch is one message, exit status 1, and an end: several processes, or several machines."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from apr_train.run.folder import METRICS, MODEL
from apr_train.run.metrics import read_metrics

from tests.processes.compared import assert_same_losses
from tests.processes.launchers import TRAIN, ended, errors, make_text, torchrun, two_machines

pytestmark = pytest.mark.slow  # each starts processes
HOST = socket.gethostname()
FAMILY = "apr_train_codebert"


@pytest.fixture
def place(tmp_path):
    make_text(tmp_path)
    return tmp_path


def fails(*launchers):
    """The one message of launches that all end with status 1 and write no run."""
    statuses, _, stderr = ended(*launchers)
    assert set(statuses) == {1}, stderr
    found = errors(stderr)
    assert len(found) == 1, stderr
    assert not re.findall(r'File "[^"]*apr_train/', stderr)  # a launcher that fails shows a traceback of its own
    return found[0]


def distribution(folder, version, points):
    """A folder that gives Python another version of the family's package, with other entry points, and no modules."""
    info = folder / f"{FAMILY}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: apr-train-codebert\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[apr_train.families]\n{points}\n" if points else "")
    return folder


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("--batch-size", "1"), "fewer rows than processes"),
        (("--replicate", "3"), "--replicate: the processes cannot be divided so, expected a divisor of 2"),
        (("--shard", "full", "--replicate", "2"), "--shard full has its own number of groups"),
        (("--device", "cuda"), "cuda"),
        (("--arch", "codebart"), "did you mean codebert?"),
    ],
    ids=["rows", "replicate", "groups", "device", "family"],
)
def test_a_setting_that_cannot_be(place, values, told):
    assert told in fails(torchrun(place, *TRAIN, *values))
    assert not (place / "runs").exists()


def test_a_run_that_only_the_first_machine_sees(place, tmp_path_factory):
    """Its folder lies on no shared file system."""
    (status,), _, stderr = ended(torchrun(place, *TRAIN, "--steps", "2", "--run", "seen", count=1))
    assert status == 0, stderr
    other = tmp_path_factory.mktemp("other")
    make_text(other)
    told = fails(*two_machines((place, other), "--resume", "runs/seen", "--steps=4", name="resume"))
    assert f"rank 1 on {HOST}: runs/seen: this is no run" in told


def test_machines_with_different_versions_of_a_family(place):
    newer = distribution(place / "newer", "99.1", f"codebert = {FAMILY}")
    told = fails(*two_machines((place, place), *TRAIN, "--run", "two", name="versions", paths=((), (newer,))))
    assert f"rank 1 on {HOST}" in told
    assert "family codebert" in told
    assert "apr-train-codebert 99.1" in told
    assert f"as rank 0 on {HOST} has" in told
    assert not (place / "runs").exists()


def test_a_family_that_one_machine_does_not_have(place):
    empty = distribution(place / "empty", "99.1", "")
    told = fails(*two_machines((place, place), *TRAIN, "--run", "two", name="missing", paths=((), (empty,))))
    assert f"rank 1 on {HOST}" in told
    assert "codebert" in told
    assert "no installed plugin offers this family" in told


def test_a_family_that_is_broken_on_one_machine(place):
    broken = distribution(place / "broken", "99.1", "codebert = broken_family")
    (broken / "broken_family.py").write_text("raise ImportError('no such library here')\n")
    told = fails(*two_machines((place, place), *TRAIN, "--run", "two", name="broken", paths=((), (broken,))))
    assert f"rank 1 on {HOST}" in told
    assert "no such library here" in told


def test_a_port_that_is_in_use(place):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        launch = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        launch |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(taken.getsockname()[1])}
        done = subprocess.run(
            [sys.executable, "-m", "apr_train", *TRAIN],
            cwd=place,
            env={**os.environ, **launch},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    (told,) = done.stderr.splitlines()
    assert "the processes do not come together" in told
    assert "Is the port free" in told


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "of each machine"])
def test_two_machines_learn_what_one_learns(place, shared):
    """With a cache of tokens that both see, and with one each, which each fills once."""
    caches = [place / "cache"] * 2 if shared else [place / "cache 1", place / "cache 2"]
    values = (*TRAIN, "--steps", "6")
    statuses, stdout, stderr = ended(*two_machines((place, place), *values, "--run", "two", name="two", caches=caches))
    assert statuses == [0, 0], stderr
    assert "2 on 1 machine" in stdout  # by their names, which are one here
    assert all(any(cache.iterdir()) for cache in caches)
    (status,), _, stderr = ended(torchrun(place, *values, "--run", "one", count=1))
    assert status == 0, stderr
    runs = place / "runs"
    assert (runs / "two" / MODEL).exists()
    assert len(read_metrics(runs / "two" / METRICS)) == 7
    assert_same_losses(runs / "one", runs / "two", 1e-5)


def test_machines_with_different_settings(place):
    how = {"name": "settings", "more": ((), ("--seed", "4"))}
    told = fails(*two_machines((place, place), *TRAIN, "--run", "two", **how))
    assert told.startswith(f"Error: rank 1 on {HOST} [run.seed]: the processes of a run have to have the same, expected 3")
    assert "found 4" in told


def test_machines_with_different_text(place, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    make_text(other)
    (other / "text" / "3.py").write_text("x = 1\n")
    told = fails(*two_machines((place, other), *TRAIN, "--run", "two", name="text", caches=(None, Path(other) / "cache")))
    assert "hash of corpus" in told

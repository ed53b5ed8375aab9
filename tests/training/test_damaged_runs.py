"""Every file that a run writes, damaged: a resume and a report give the right answer, or an error of ours and no change."""

import random
import shutil

import pytest
from apr_train.errors import AprTrainError
from apr_train.run.record import read_record
from apr_train.run.resume import plan_resume
from apr_train.run.settings import RunSettings, Settings
from apr_train.training.setup import prepare

from tests.fuzz.inputs import KINDS
from tests.fuzz.seeds import make_seeds

RUNS = ("run", "lora", "fim", "masked")
UNREAD = {".lock", "trace.json.gz"}
BEFORE = "step-000001"
"""The checkpoint before the last, whose files are of the same kinds."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "seeds"
    make_seeds(folder)
    return folder


def changes_of(seeds, run):
    """The files of a run that the fuzzer changes, and how."""
    folder = seeds / run
    return {path.relative_to(folder): how for name, how in KINDS[run].files.items() for path in folder.glob(name)}


@pytest.mark.parametrize("run", RUNS)
def test_every_file_that_a_run_writes_is_changed(seeds, run):
    written = {path.relative_to(seeds / run) for path in (seeds / run).rglob("*") if path.is_file()}
    read = {path for path in written if path.name not in UNREAD and path.parts[0] != BEFORE}
    assert changes_of(seeds, run).keys() == read


def resume(folder):
    plan = plan_resume(folder, Settings(run=RunSettings(steps=3)), {"steps"})
    with prepare(plan.settings, plan, lambda _: None):
        pass


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in UNREAD}


def damage(seeds, run, folder, *, seed, count):
    """For each file so many changed copies of the run."""
    for name, change in changes_of(seeds, run).items():
        for number in range(count):
            pick = random.Random(f"{seed}:{run}:{name}:{number}")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(seeds / run, folder)
            (folder / name).write_bytes(change((seeds / run / name).read_bytes(), pick))
            yield f"{run}: {name}, {number}"


def fault_of(read, folder, what):
    try:
        read(folder)
    except AprTrainError as error:
        return error
    except Exception as error:
        pytest.fail(f"{what}: {read.__name__} raised {error!r}")
    return None


def try_all(seeds, run, tmp_path, monkeypatch, **how):
    monkeypatch.setenv("APR_TRAIN_CACHE", str(seeds / "used"))
    refused = total = 0
    for what in damage(seeds, run, tmp_path / "run", **how):
        for read in (read_record, resume):
            before, fault = snapshot(tmp_path / "run"), fault_of(read, tmp_path / "run", what)
            total, refused = total + 1, refused + (fault is not None)
            assert fault is None or (len(str(fault).encode()) < 4096 and snapshot(tmp_path / "run") == before), what
    assert 0 < refused < total


@pytest.mark.parametrize("run", RUNS)
def test_a_damaged_file_of_a_run_is_refused_or_harmless(seeds, run, tmp_path, monkeypatch):
    try_all(seeds, run, tmp_path, monkeypatch, seed=1, count=1)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_damaged_files_of_runs_by_the_hundred(seeds, run, tmp_path, monkeypatch):
    try_all(seeds, run, tmp_path, monkeypatch, seed=2, count=40)

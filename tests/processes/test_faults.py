"""How several processes end: a bad input is one message, one that dies takes the others along, and a restart goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apr_train.errors import ConfigError, RunError
from apr_train.run.folder import METRICS, MODEL, checkpoints
from apr_train.run.launch import Launch, note_launch, run_of_launch
from apr_train.run.settings import ProcessSettings
from apr_train.training.process_group import replicas

ENVIRONMENT = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
TRAIN = (
    *("--arch", "codebert", "--preset", "tiny", "--vocab-size", "340", "--data", "text", "--sequence-length", "32"),
    *("--batch-size", "3", "--precision", "fp32", "--device", "cpu", "--val-every", "0", "--val-batches", "1", "--seed", "3"),
)


def torchrun(place, *arguments, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "-m", "--", "apr_train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "APR_TRAIN_CACHE": str(place / "cache")}
    return subprocess.Popen(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(20):
        lines = (f"def scale_{n}(values):\n    return [value * {n} for value in values]\n" for n in range(number, number + 40))
        (tmp_path / "text" / f"{number}.py").write_text("".join(lines))
    return tmp_path


def process_of(launcher, rank):
    """The process of a rank: a child of the launcher."""
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True).stdout.split()
    for child in map(int, children):
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return child
    raise AssertionError("no such process")


def steps_in(folder):
    return len((folder / METRICS).read_text().splitlines()) if (folder / METRICS).exists() else 0


def send(launcher, rank, number, *, once):
    """A signal to the process of a rank, once something is so."""
    end = time.monotonic() + 120
    while not once():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(process_of(launcher, rank), number)


def errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("Error: ")]


def test_a_launch_is_what_the_environment_says():
    launch = Launch.of({**ENVIRONMENT, "TORCHELASTIC_RUN_ID": "seven", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert (launch.rank, launch.size, launch.local_rank, launch.nodes, launch.restarts) == (1, 4, 1, 2, 2)
    assert Launch.of({**ENVIRONMENT, "TORCHELASTIC_RUN_ID": "seven", "RANK": "3"}).id == launch.id
    assert Launch.of({"PATH": "/bin"}) is None


@pytest.mark.parametrize(("name", "value"), [("LOCAL_RANK", None), ("WORLD_SIZE", "many"), ("RANK", "4"), ("MASTER_PORT", "")])
def test_a_launch_that_is_not_told_whole_is_refused(name, value):
    environment = {**ENVIRONMENT, name: value}
    with pytest.raises(RunError, match=name):
        Launch.of({key: item for key, item in environment.items() if item is not None})


def test_a_run_is_known_by_its_launch(tmp_path):
    launch, other = (Launch.of({**ENVIRONMENT, "TORCHELASTIC_RUN_ID": name}) for name in ("one", "two"))
    for name, noted in (("a", launch), ("b", other)):
        (tmp_path / name).mkdir()
        note_launch(tmp_path / name, noted)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".launch").write_text("no json")
    assert run_of_launch(tmp_path, launch) == tmp_path / "a"
    assert run_of_launch(tmp_path / "nowhere", launch) is None


@pytest.mark.parametrize(
    ("values", "size", "found"),
    [({}, 2, 1), ({}, 4, 2), ({"shard": "full"}, 4, 1), ({"shard": "none"}, 4, 4), ({"replicate": 4}, 4, 4)],
)
def test_parameters_lie_as_the_settings_say(values, size, found):
    assert replicas(ProcessSettings(**values), Launch.of({**ENVIRONMENT, "WORLD_SIZE": str(size)})) == found


@pytest.mark.parametrize("values", [{"replicate": 3}, {"shard": "full", "replicate": 2}])
def test_groups_that_do_not_come_out_even_are_refused(values):
    with pytest.raises(ConfigError, match="--replicate"):
        replicas(ProcessSettings(**values), Launch.of(ENVIRONMENT))


@pytest.mark.slow
def test_fewer_rows_than_processes_is_one_message(place):
    done = torchrun(place, *TRAIN, "--batch-size", "1")
    _, stderr = done.communicate(timeout=120)
    (told,) = errors(stderr)
    assert "fewer rows than processes" in told
    assert done.returncode == 1
    assert not (place / "runs").exists()


def test_a_killed_run_is_restarted_and_ends_as_if_nothing_had_been(place):
    """Also: those that are left say which process has gone, once."""
    values = ("--steps", "40", "--save-every", "8")
    whole = torchrun(place, *TRAIN, *values, "--run", "whole")
    stdout, stderr = whole.communicate(timeout=240)
    assert whole.returncode == 0, stderr
    assert stdout.count("step  0/40") == 1
    broken = torchrun(place, *TRAIN, *values, "--run", "broken", restarts=1)
    folder = place / "runs" / "broken"
    send(broken, 1, signal.SIGKILL, once=lambda: checkpoints(folder))
    stdout, stderr = broken.communicate(timeout=240)
    assert broken.returncode == 0, stderr
    assert "rank 1 on" in "".join(errors(stderr))
    assert len(errors(stderr)) == 1
    assert stdout.count("resumed") == 1
    assert (place / "runs" / "broken" / MODEL).read_bytes() == (place / "runs" / "whole" / MODEL).read_bytes()


def test_a_signal_to_one_process_saves_on_all(place):
    run = torchrun(place, *TRAIN, "--steps", "100000", "--save-every", "0", "--run", "stopped")
    folder = place / "runs" / "stopped"
    send(run, 1, signal.SIGTERM, once=lambda: steps_in(folder) > 5)
    stdout, stderr = run.communicate(timeout=240)
    assert "stopped" in stdout, stderr
    assert "SIGTERM" in stdout
    assert not errors(stderr)
    lines = (place / "runs" / "stopped" / METRICS).read_text().splitlines()
    assert checkpoints(place / "runs" / "stopped")[-1].step == len(lines) - 1

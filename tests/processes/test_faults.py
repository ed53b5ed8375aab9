"""How several processes end: a bad input is one message, one that dies takes the others along, and a restart goes on."""

import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from apr_train.errors import ConfigError, RunError
from apr_train.run.folder import MODEL, OPTIMIZER, STATE, checkpoints
from apr_train.run.launch import Launch, note_launch, replicas, run_of_launch
from apr_train.run.settings import ProcessSettings

from tests.processes.compared import curve
from tests.processes.launchers import TRAIN, ended, errors, make_text, process_of, send, steps_in, torchrun

ENVIRONMENT = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}


@pytest.fixture
def place(tmp_path):
    make_text(tmp_path)
    return tmp_path


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
    assert run_of_launch(tmp_path, launch, "b") is None
    (tmp_path / "group" / "d").mkdir(parents=True)
    note_launch(tmp_path / "group" / "d", launch)
    assert run_of_launch(tmp_path, launch, "group/d") == tmp_path / "group" / "d"
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


def test_a_killed_run_is_restarted_and_ends_as_if_nothing_had_been(place):
    """Also: those that are left say which process has gone, once."""
    values = ("--steps", "40", "--save-every", "8")
    (status,), stdout, stderr = ended(torchrun(place, *TRAIN, *values, "--run", "whole"))
    assert status == 0, stderr
    assert stdout.count("step  0/40") == 1
    broken, folder = torchrun(place, *TRAIN, *values, "--run", "broken", restarts=1), place / "runs" / "broken"
    send(broken, 1, signal.SIGKILL, once=lambda: checkpoints(folder))
    (status,), stdout, stderr = ended(broken)
    assert status == 0, stderr
    (told,) = errors(stderr)
    assert told.startswith(f"Error: rank 1 on {socket.gethostname()}: a process of the run has ended")
    assert stdout.count("resumed") == 1
    assert (folder / MODEL).read_bytes() == (place / "runs" / "whole" / MODEL).read_bytes()


def test_a_signal_to_one_process_saves_on_all(place):
    run, folder = (
        torchrun(place, *TRAIN, "--steps", "100000", "--save-every", "0", "--run", "stopped"),
        place / "runs" / "stopped",
    )
    send(run, 1, signal.SIGTERM, once=lambda: steps_in(folder) > 5)
    _, stdout, stderr = ended(run)
    assert "stopped" in stdout, stderr
    assert "SIGTERM" in stdout
    assert not errors(stderr)
    assert checkpoints(folder)[-1].step == steps_in(folder) - 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_is_named_by_one_that_is_left(place, rank):
    run, folder = torchrun(place, *TRAIN, "--steps", "100000", "--save-every", "3", "--run", "dead"), place / "runs" / "dead"
    send(run, rank, signal.SIGKILL, once=lambda: checkpoints(folder))
    begin = time.monotonic()
    (status,), _, stderr = ended(run)
    assert time.monotonic() - begin < 30  # when torchrun kills who has not ended
    (told,) = errors(stderr)
    assert told.startswith(f"Error: rank {rank} on {socket.gethostname()}: a process of the run has ended")
    assert status == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_is_given_up_after_the_timeout(place, rank):
    """It is stopped, so that it neither dies nor answers; often while a checkpoint is written."""
    values = ("--steps", "100000", "--save-every", "3", "--timeout", "8", "--run", "hung")
    run, folder = torchrun(place, *TRAIN, *values), place / "runs" / "hung"
    other, begin = process_of_soon(run, 1 - rank), 0.0
    try:
        stopped = send(run, rank, signal.SIGSTOP, once=lambda: checkpoints(folder))
        begin = time.monotonic()
        while is_running(other):
            time.sleep(0.1)
            assert time.monotonic() - begin < 30
    finally:
        os.kill(stopped, signal.SIGKILL)
    assert time.monotonic() - begin >= 8
    (status,), _, stderr = ended(run)
    (told,) = errors(stderr)
    assert told.startswith(f"Error: rank {rank} on {socket.gethostname()}: a process of the run has ended, or does not answer")
    assert status == 1


def process_of_soon(launcher, rank):
    while (found := process_of(launcher, rank)) is None:
        time.sleep(0.1)
        assert launcher.poll() is None
    return found


def is_running(process):
    try:
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_twenty_kills_change_nothing(place):
    """Of a random process, at random moments, every second one while a checkpoint is being written."""
    values = ("--steps", "300", "--save-every", "5", "--keep", "2")
    (status,), _, stderr = ended(torchrun(place, *TRAIN, *values, "--run", "whole"), seconds=600)
    assert status == 0, stderr
    draw, folder, whole = random.Random(20), place / "runs" / "broken", place / "runs" / "whole"
    run = torchrun(place, *TRAIN, *values, "--run", "broken", restarts=20)
    while_written = 0
    said = []
    listener = threading.Thread(target=lambda: said.extend(run.communicate()))  # or its pipes are full, and it waits
    listener.start()
    for number in range(20):
        rank = draw.randrange(2)
        victim = process_of_soon(run, rank)
        if number % 2:
            while not list(folder.glob(".step-*.part")) and is_running(victim) and steps_in(folder) < 300:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.02))
            while_written += bool(list(folder.glob(".step-*.part")))
        else:
            time.sleep(draw.uniform(0, 15))
        assert steps_in(folder) < 300, f"over after {number} kills"
        os.kill(victim, signal.SIGKILL)
        while is_running(victim) or process_of(run, rank) == victim:
            time.sleep(0.05)
    listener.join(600)
    assert run.returncode == 0, said
    assert while_written >= 8
    assert curve(folder) == curve(whole)
    last = "step-000300"
    for name in (MODEL, f"{last}/{MODEL}", f"{last}/{OPTIMIZER}", f"{last}/{STATE}"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()

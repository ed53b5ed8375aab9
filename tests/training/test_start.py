"""A start that fails, is killed, or finds no room: the name is free again, and the message says what to do."""

import signal
import subprocess
import sys
import time

import pytest

SCRATCH = ("--arch", "llama370m", "--preset", "tiny", "--steps", "3", "--precision", "fp32")
KILLED_IN = """
import os, signal, sys
from importlib import import_module
module, _, name = sys.argv.pop(1).rpartition(".")
setattr(import_module(module), name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
from apr_train.cli import main
main()
"""
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from apr_train.cli import main
main()
"""
LINES = "metrics.jsonl"


@pytest.fixture
def args(place):
    small = ("--sequence-length", "32", "--val-batches", "2", "--attention", "sdpa", "--sample-tokens", "0", "--threads", "1")
    return ("--data", place.corpus, *SCRATCH, *small)


def run_with(place, code, first, *args):
    """`apr-train …` in a process that `code` prepares."""
    command = [sys.executable, "-c", code, first, *map(str, args)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=place.folder, timeout=120)


def test_a_corpus_that_is_too_small_leaves_no_folder(place, args):
    (place.folder / "small.txt").write_text("one two three four five six seven\n" * 3)
    out = place("--data", "small.txt", *args[2:], "--run", "x", code=1)
    assert "too small" in out
    assert not (place.folder / "runs").exists()
    place(*args, "--run", "x")


def test_a_damaged_checkpoint_leaves_no_folder(place, taught):
    data = bytearray(taught.read_bytes())
    data[-200] ^= 1
    (place.folder / "damaged.apr").write_bytes(bytes(data))
    assert "checksum" in place.train("--init", "damaged.apr", "--steps", "1", code=1)
    assert not (place.folder / "runs").exists()


def test_a_refused_cold_start_gives_the_name_back(place):
    place.train(*SCRATCH, "--steps", "0", "--run", "cold")
    init = ("--init", place.run("cold") / "model.apr", "--steps", "2", "--run", "x")
    assert "FALSIFY-APR-PRETRAIN-INIT-006" in place.train(*init, code=1)
    place.train(*init, "--allow-cold-init")
    assert [line["step"] for line in place.curve("x")] == [0, 1, 2]


PREPARE, LOOP = "apr_train.training.setup", "apr_train.training.loop"
WINDOWS = [f"{PREPARE}.write_identity", "os.fsync", f"{PREPARE}.write_file", f"{LOOP}._start"]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_kill_between_the_folder_and_the_first_line_leaves_the_name_free(place, args, window):
    place(*args, "--run", "whole")  # makes the tokens as well: the first fsync below is one in the run's folder
    for _ in range(2):
        killed = run_with(place, KILLED_IN, window, *args)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert place.run("llama370m-tiny").is_dir()
    place(*args)
    assert {item.name for item in (place.folder / "runs").iterdir()} == {"whole", "llama370m-tiny"}
    assert not list(place.run("llama370m-tiny").glob(".*.part"))
    place.assert_same_end("whole", "llama370m-tiny", step=3)


def test_a_kill_before_the_first_line_can_be_resumed_as_well(place, args):
    killed = run_with(place, KILLED_IN, WINDOWS[-1], *args, "--run", "x")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    place("--resume", "runs/x")
    assert [line["step"] for line in place.curve("x")] == [0, 1, 2, 3]


def test_a_start_killed_at_any_moment_can_be_made_again(place, args):
    """Kills over the whole time from the interpreter's start to the first line of metrics."""
    many = (*args, "--steps", "2000", "--save-every", "0")
    begin = time.monotonic()
    process = place.start(*many, "--run", "timed")
    while not (place.run("timed") / LINES).exists():
        assert process.poll() is None
        time.sleep(0.005)
    lasts = time.monotonic() - begin
    process.kill()
    process.communicate()
    for share in (0.3, 0.7, 0.9, 0.95, 1.0):
        name = f"at-{share}"
        process = place.start(*many, "--run", name)
        time.sleep(share * lasts)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        begun = (place.run(name) / LINES).exists() and (place.run(name) / LINES).stat().st_size
        place(*(("--resume", place.run(name), "--steps", "3") if begun else (*args, "--run", name)))
        assert place.curve(name)[-1]["step"] >= 3


@pytest.mark.parametrize(("limit", "file"), [(1_000_000, "model.apr"), (5_000_000, "optimizer.safetensors")])
def test_a_full_disk_is_an_error_and_the_checkpoint_before_it_stays(place, args, limit, file):
    place(*args, "--run", "x")
    full = run_with(place, LIMITED, str(limit), "--resume", "runs/x", "--steps", "6")
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert f"{file}: cannot be written" in full.stderr
    assert [item.name for item in place.run("x").glob("*step-*")] == ["step-000003"]
    place("--resume", "runs/x", "--steps", "6")
    assert place.curve("x")[-1]["step"] == 6


@pytest.mark.parametrize("inside", ["model.safetensors", ""])
def test_a_run_is_not_put_into_the_folder_of_its_source(place, taught, inside):
    (place.folder / "runs").mkdir()
    place("export", taught, "-o", place.run("x"))
    before = {path.name: path.read_bytes() for path in place.run("x").iterdir()}
    out = place.train("--init", place.run("x") / inside, "--steps", "0", "--run", "x", code=3)
    assert "the run's folder is not empty" in out
    assert {path.name: path.read_bytes() for path in place.run("x").iterdir()} == before

"""`--tracker`: curves that others read back, a resume that goes on with them, bad names, and no network unasked."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "trackers.md"
FRESH = (
    "--arch",
    "llama370m",
    "--preset",
    "tiny",
    "--precision",
    "fp32",
    "--val-every",
    "2",
    "--save-every",
    "3",
    "--keep",
    "0",
)
BLOCK, WHOLE_OR_LAST = 32768, (1, 4)


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.rule("TRACKER-001")
def test_what_is_no_tracker_is_told_before_anything_is_made(place):
    output = place.train(*FRESH, "--tracker", "tensorbord", "--tracker", "nothing", "--lr", "1e-3", "--run", "a", code=3)
    assert "TRACKER-001: --tracker: no installed distribution offers this tracker, found tensorbord" in output
    assert "did you mean tensorboard?" in output
    assert "found nothing" in output
    assert not (place.folder / "runs").exists()
    assert "TRACKER-001" in place.train(*FRESH, "--tracker", "tensorbord", "--dry-run", code=3)


@pytest.mark.rule("TRACKER-002")
def test_a_tracker_without_its_package_names_the_extra_before_anything_is_made(place, monkeypatch):
    monkeypatch.setattr("apr_train.run.trackers.util", SimpleNamespace(find_spec=lambda package: None))
    assert "pip install 'apr-train[tensorboard]'" in place.train(*FRESH, "--tracker", "tensorboard", code=3)
    assert not (place.folder / "runs").exists()


def scalars(folder):
    """What TensorBoard reads: tag → (step, value) of each event that it shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_tensorboard_reads_every_number_back_and_a_resume_hides_what_its_checkpoint_did_not_know(place):
    pytest.importorskip("tensorboard")
    output = place.train(*FRESH, "--steps", "6", "--run", "a", "--tracker", "tensorboard")
    assert "tensorboard: tensorboard --logdir" in output
    run = place.run("a")

    def assert_shown():
        shown = scalars(run / "trackers" / "tensorboard")
        for name in ("loss", "lr", "grad_norm", "val_loss", "perplexity", "tokens"):
            expected = [(line["step"], line[name]) for line in lines_of(run) if name in line]
            assert [step for step, _ in shown[name]] == [step for step, _ in expected]
            assert [value for _, value in shown[name]] == pytest.approx([value for _, value in expected])  # float32 there

    assert_shown()
    place("--resume", run / "step-000003")
    assert len(list((run / "trackers" / "tensorboard").iterdir())) == 2
    assert_shown()


def test_a_tracker_that_is_taken_away_after_the_start_does_not_stop_the_run(place, monkeypatch):
    pytest.importorskip("tensorboard")
    import torch.utils.tensorboard

    def broken(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", broken)
    output = place.train(*FRESH, "--steps", "2", "--run", "a", "--tracker", "tensorboard")
    assert output.count("tracker tensorboard failed in run_started (OSError: no space left): the run goes on without it") == 1
    assert (place.run("a") / "model.apr").exists()


def records_of(file):
    """The records of wandb's own log of an offline run, as dicts; the log is LevelDB's format behind seven bytes."""
    from google.protobuf.json_format import MessageToDict
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, message = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, place)
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in WHOLE_OR_LAST:
            yield MessageToDict(Record.FromString(message))
            message = b""


def child(*arguments, folder, **variables):
    """`apr-train …` in a process of its own."""
    command = [sys.executable, "-c", "from apr_train.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=True).stdout


def test_wandb_offline_has_what_it_says_and_nothing_of_the_machine_and_a_resume_goes_on_with_its_run(place):
    pytest.importorskip("wandb")
    small = ("--data", place.corpus, "--sequence-length", 32, "--val-batches", 2, "--sample-tokens", 0, "--threads", 1)
    arguments = (*FRESH, *small, "--steps", 4, "--run", "a", "--tracker", "wandb")
    output = child(*arguments, folder=place.folder, WANDB_MODE="offline")
    assert "wandb: sends the run's name, its settings but for paths, and the numbers of every step" in output
    run = place.run("a")
    (file,) = (run / "trackers" / "wandb").rglob("*.wandb")
    records = list(records_of(file))
    (begun,) = [record["run"] for record in records if "run" in record][:1]
    config = {item.get("key") or item["nestedKey"][0]: item["valueJson"] for item in begun["config"]["update"]}
    assert config["optimizer.clip_norm"] == "1.0"
    assert begun["displayName"] == "a"
    sent = [
        {(item.get("key") or item["nestedKey"][0]): json.loads(item["valueJson"]) for item in record["history"]["item"]}
        for record in records
        if "history" in record
    ]
    for name in ("loss", "val_loss", "grad_norm"):
        assert [(line["step"], line[name]) for line in sent if name in line] == [
            (line["step"], line[name]) for line in lines_of(run) if name in line
        ]
    said = json.dumps([record for record in records if not {"output", "outputRaw"} & record.keys()])
    for secret in (str(place.folder), str(place.corpus), sys.executable, socket.gethostname() + '"'):
        assert secret not in said
    assert {path.name for path in (run / "trackers" / "wandb").rglob("files/*")} <= {"config.yaml", "wandb-summary.json"}

    child("--resume", run, "--steps", 6, folder=place.folder, WANDB_MODE="offline")
    files = list((run / "trackers" / "wandb").rglob("*.wandb"))
    assert len(files) == 2
    assert {file.stem for file in files} == {f"run-{(run / 'trackers' / 'wandb' / 'id').read_text()}"}


@pytest.fixture
def written(tmp_path):
    """The example of docs/trackers.md, built and installed into a folder."""
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    for name, text in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.S):
        (project / name).write_text(text)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", site, project], check=True, capture_output=True, text=True)
    return site


def test_the_tracker_of_the_page_is_found_and_told(place, written):
    path = os.pathsep.join([str(written), os.environ.get("PYTHONPATH", "")])
    arguments = (*FRESH, "--data", place.corpus, "--sequence-length", 32, "--val-batches", 2, "--steps", 3, "--threads", 1)
    child(*arguments, "--run", "a", "--tracker", "csv", "--sample-tokens", 0, folder=place.folder, PYTHONPATH=path)
    rows = [line.split(",") for line in (place.run("a") / "trackers" / "csv" / "loss.csv").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines_of(place.run("a")) if "loss" in line}
    assert rows[0] == ["step", "loss", "val_loss"]
    assert {int(step): float(loss) for step, loss, _ in rows[1:]} == losses


NOTHING_SENT = """
import sys
def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise AssertionError(f"{event}{arguments}")
sys.addaudithook(refuse)
from apr_train.cli import cli
for line in sys.argv[1:]:
    if cli(line.split(), standalone_mode=False):
        sys.exit(line)
"""


def test_nothing_reaches_the_network_unasked(place):
    small = f"--data {place.corpus} --sequence-length 32 --val-batches 2 --sample-tokens 4 --threads 1 --steps 3"
    tracker = "--tracker tensorboard" if have("tensorboard") else ""
    commands = [
        f"{' '.join(FRESH)} {small} --run a {tracker}",
        "--resume runs/a --steps 4",
        "export runs/a -o hf",
        "import hf -o x.apr",
        "export x.apr -o x.gguf --format gguf",
        f"eval x.apr --data {place.corpus} --sequence-length 32",
        "generate x.gguf --prompt def --max-tokens 3",
        "check x.apr",
        "report runs/a -o r.html",
        "plugins",
    ]
    commands[0] = f"train {commands[0]}"
    commands[1] = f"train {commands[1]}"
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_SENT, *commands], cwd=place.folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_use_of_the_network_would_be_seen(place):
    code = NOTHING_SENT + "import socket\nsocket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "AssertionError: socket." in done.stderr


def have(package):
    from importlib.util import find_spec

    return find_spec(package) is not None

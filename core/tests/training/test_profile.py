"""The trace of some steps: what is written, that it is torch's, and that nothing else of a run changes."""

import gzip
import json

import pytest
import torch
from apr_train.errors import ConfigError, RunError
from apr_train.preflight.profile_rules import profile_findings
from apr_train.run.folder import METRICS, PROFILE, StepFolder
from apr_train.run.metrics import MEASURED
from apr_train.run.profile_file import ITEMS, MEMORY, TRACE, ProfileItem, ProfileRecord, read_profile, write_profile
from apr_train.run.profile_window import ProfileWindow
from apr_train.run.resume import Resume
from apr_train.run.settings import RunSettings, Settings
from apr_train.training import profile
from apr_train.training.loop import train
from apr_train.training.profile import LARGEST, profiler_of, summary


def traced(make_run, folder, window, **values):
    """A run with its profiler, and what it is told."""
    run, told = make_run(folder, profile=window, **values), []
    run.profiler = profiler_of(run.settings.run, run.folder, run.device, told.append, done=run.step)
    return run, told


def metrics_of(run):
    lines = [json.loads(line) for line in (run.folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def unpacked(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def test_the_trace_holds_the_steps_of_the_window_and_the_run_is_the_same(make_run, capfd):
    plain = make_run("plain")
    train(plain)
    run, told = traced(make_run, "traced", "3:4")
    train(run)
    assert metrics_of(run) == metrics_of(plain)
    assert told == [f"steps 3 to 4 are traced in {run.folder / PROFILE}"]
    assert sorted(path.name for path in (run.folder / PROFILE).iterdir()) == [ITEMS, TRACE]
    events = unpacked(run.folder / PROFILE / TRACE)["traceEvents"]
    assert sum(event.get("name") == "training step" and event.get("ph") == "X" for event in events) == 2
    assert sum(event.get("name") == "Optimizer.step#AdamW.step" for event in events) == 2
    assert "USDT" not in capfd.readouterr().err


def test_the_items_are_the_largest_of_torchs_own_table(make_run, monkeypatch):
    run, told = traced(make_run, "run", "2:2")
    kept = []
    monkeypatch.setattr(profile, "summary", lambda averages, *rest: kept.extend(averages) or summary(averages, *rest))
    train(run)
    assert told == [f"step 2 is traced in {run.folder / PROFILE}"]
    record = read_profile(run.folder / PROFILE / ITEMS)
    own = {item.key: item.self_cpu_time_total / 1e6 for item in kept if item.key != "training step"}
    assert [item.name for item in record.items] == sorted(own, key=own.get, reverse=True)[:LARGEST]
    assert record.seconds == pytest.approx(sum(own.values()))
    assert (record.first, record.last, record.clock) == (2, 2, "cpu")
    assert all(item.seconds == pytest.approx(own[item.name]) and item.calls >= 1 for item in record.items)


def test_a_run_that_ends_inside_the_window_leaves_no_trace(make_run):
    run, told = traced(make_run, "run", "2:5")
    stream = run.stream.next_batch
    run.stream.next_batch = lambda: stream() if run.step < 2 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        train(run)
    assert told == ["no trace: the run ended before step 5"]
    assert not (run.folder / PROFILE).exists()
    torch.profiler.profile().start()  # another one can begin: the first has ended


def test_a_trace_that_cannot_be_written_is_told_and_the_run_goes_on(make_run, monkeypatch):
    run, told = traced(make_run, "run", "2:2")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profile, "write_profile", full)
    train(run)
    assert run.step == 6
    (line,) = told
    assert line.startswith("no trace: ")
    assert "No space left on device" in line
    assert not (run.folder / PROFILE).exists()


def test_a_cuda_device_leaves_its_memory_as_json(tmp_path, monkeypatch):
    """Without a device: torch's calls are recorded, and what they would give is written."""
    asked = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **how: asked.append(how))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"segments": [{"address": 1, "frames": []}]})
    profile.write_memory(tmp_path / MEMORY)
    assert unpacked(tmp_path / MEMORY) == {"segments": [{"address": 1, "frames": []}]}
    assert asked == [{"enabled": None}]


class Average:
    def __init__(self, key, cpu, device):
        self.key, self.count, self.self_cpu_time_total, self.self_device_time_total = key, 1, cpu, device


def test_on_cuda_the_time_is_the_kernels():
    found = summary(
        [Average("aten::mm", 9e6, 0), Average("gemm", 0, 2e6), Average("copy", 0, 3e6)], ProfileWindow(1, 1), "cuda"
    )
    assert [(item.name, item.seconds) for item in found.items] == [("copy", 3.0), ("gemm", 2.0)]
    assert (found.seconds, found.clock) == (5.0, "cuda")


@pytest.mark.rule("PROFILE-001")
@pytest.mark.parametrize("text", ["", "3", "a:b", "3:", "0:2", "5:4", "1:101", "1:2:3", "-1:2", "٣:٤"])
def test_what_is_no_window_is_refused_with_what_to_write(text):
    with pytest.raises(ConfigError) as error:
        ProfileWindow.parse(text)
    assert error.value.finding.rule == "PROFILE-001"
    assert error.value.finding.found == text


@pytest.mark.rule("PROFILE-001")
@pytest.mark.parametrize(
    ("window", "steps", "fine"), [("10:13", 13, True), ("10:13", 12, False), ("1:1", 0, False), ("1:1", 1, True)]
)
def test_a_window_outside_the_run_is_one_finding(window, steps, fine):
    findings = profile_findings(RunSettings(profile=window, steps=steps), None)
    assert len(findings) == (not fine)
    assert all(finding.severity == "error" and finding.found == window for finding in findings)


@pytest.mark.parametrize(
    ("stated", "window", "found"), [(False, "1:2", 0), (True, "1:2", 1), (True, "5:6", 0), (True, "4:6", 1)]
)
def test_a_run_that_goes_on_is_asked_for_steps_that_are_still_to_come(tmp_path, stated, window, found):

    settings = Settings(run=RunSettings(profile=window, steps=9))
    resume = Resume(
        path=tmp_path,
        folder=tmp_path,
        checkpoint=StepFolder(tmp_path, 4),
        settings=settings,
        stated=frozenset({"profile"} if stated else ()),
    )
    assert len(profile_findings(settings.run, resume)) == found


def test_a_window_that_is_over_traces_nothing(make_run):
    run, _ = traced(make_run, "run", "1:2")
    assert profiler_of(run.settings.run, run.folder, run.device, print, done=1) is None
    assert profiler_of(make_run("other").settings.run, run.folder, run.device, print, done=0) is None


def test_a_profile_is_read_back_as_it_was_written(tmp_path):
    record = ProfileRecord(first=1, last=2, clock="cpu", seconds=0.5, items=(ProfileItem(name="<mm>", calls=3, seconds=0.25),))
    write_profile(path := tmp_path / ITEMS, record)
    assert read_profile(path) == record
    assert read_profile(tmp_path / "none") is None


@pytest.mark.parametrize("change", ["", "[]", "{}", '{"items": 1}', {"first": "x"}, {"items": [{"name": 1}]}, {"clock": 3}])
def test_a_damaged_profile_is_one_error_with_its_path(tmp_path, change):
    write_profile(path := tmp_path / ITEMS, ProfileRecord(first=1, last=2, clock="cpu", seconds=0.5, items=()))
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=r"no profile.*Move the file away"):
        read_profile(path)

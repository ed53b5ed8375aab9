"""A run's folder read back, and every way in which it can be wrong."""

import json

import pytest
from apr_train.errors import AprTrainError, ConfigError, Finding, RunError
from apr_train.run.record import read_record, read_records


def test_a_run_is_read_back(make_run_folder):
    record = read_record(make_run_folder("a", findings=[{"id": "X-1", "problem": "a | b"}]))
    assert (record.label, len(record.lines), record.settings["optimizer.lr"]) == ("a", 201, 6e-4)
    assert [line.step for line in record.measured] == list(range(0, 201, 20))
    assert record.preflight.findings == (Finding(rule="X-1", problem="a | b", severity="warning"),)
    assert record.preflight.facts["attention"] == "sdpa (as asked)"
    (sample,) = record.samples
    assert sample.step == 200
    assert sample.prompt.endswith('number."""\n')
    assert sample.text.startswith("    if n < 2:")


def test_a_checkpoint_of_the_run_means_the_run(make_run_folder):
    folder = make_run_folder("a")
    (folder / "step-000100").mkdir()
    assert read_record(folder / "step-000100").folder == folder


def test_a_run_under_way_has_its_preflight_and_no_sample(make_run_folder):
    record = read_record(make_run_folder("a", ended=False))
    assert record.samples == ()
    assert record.preflight.facts["parameters"] == 836736


def test_the_folder_of_an_older_run_has_no_preflight(make_run_folder):
    folder = make_run_folder("a")
    for name in ("preflight.json", "samples.jsonl"):
        (folder / name).unlink()
    record = read_record(folder)
    assert (record.preflight, record.samples) == (None, ())


@pytest.mark.parametrize("name", ["preflight.json", "samples.jsonl"])
def test_a_damaged_file_is_named(make_run_folder, name):
    folder = make_run_folder("a")
    (folder / name).write_text("{!}\n")
    with pytest.raises(RunError, match=rf"{name}: .*JSON.*line 1 "):
        read_record(folder)


def test_runs_of_one_name_are_told_apart_and_a_run_named_twice_is_refused(make_run_folder):
    one, two = make_run_folder("a"), make_run_folder("a", folder="others")
    assert [record.label for record in read_records([one, two])] == [str(one), str(two)]
    with pytest.raises(RunError, match="named twice"):
        read_records([one, one / ".." / "a"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 is not a line of metrics"),
        ('{"step": 1, "los": 2}', "line 2 is not a line of metrics"),
        ('{"step": 1, "loss": "low"}', "line 2: loss is no number"),
        ('{"step": 1, "loss": true}', "line 2: loss is no number"),
        ('{"step": 0}', "line 2: the step is wrong"),
        ('{"step": "1"}', "line 2: step is no number"),
        ('{"step": 1.5}', "line 2: the step is wrong"),
    ],
)
def test_a_damaged_line_is_named_by_number(make_run_folder, line, message):
    folder = make_run_folder("a", steps=3)
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(RunError, match=message):
        read_record(folder)


def test_a_last_line_that_a_crash_cut_is_left_out(make_run_folder):
    path = make_run_folder("a", steps=3) / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert read_record(path.parent).lines[-1].step == 2


def test_bytes_that_are_no_text_are_refused(make_run_folder):
    path = make_run_folder("a") / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(RunError, match="UTF-8"):
        read_record(path.parent)


def test_a_folder_without_metrics_is_refused(make_run_folder, tmp_path):
    folder = make_run_folder("a")
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="no metrics yet"):
        read_record(folder)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="no metrics"):
        read_record(folder)
    with pytest.raises(RunError, match="no such run"):
        read_record(tmp_path / "nothing")


def test_damaged_settings_are_refused(make_run_folder):
    folder = make_run_folder("a")
    (folder / "config.toml").write_text("[model]\nname = 3\n")
    with pytest.raises(ConfigError, match="no such setting"):
        read_record(folder)


def test_any_bytes_for_metrics_are_one_kind_of_error(make_run_folder):
    path = make_run_folder("a") / "metrics.jsonl"
    for content in (b"\x00\n", b"1\n", b"null\n", b'{"step": 0, "loss": [1]}\n', json.dumps({"step": -5}).encode() + b"\n"):
        path.write_bytes(content)
        with pytest.raises(AprTrainError):
            read_record(path.parent)


def test_the_folder_above_runs_names_them(make_run_folder):
    folder = make_run_folder("a")
    (folder / "identity.json").write_text("{}")
    with pytest.raises(RunError) as caught:
        read_record(folder.parent)
    assert caught.value.finding.hint == f"Give the run: {folder}"

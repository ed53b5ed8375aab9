"""A run's folder read back, and every way in which it can be wrong."""

import json

import pytest
from apr_train.errors import AprTrainError, ConfigError, RunError
from apr_train.run.card_text import parse_card
from apr_train.run.record import read_record, read_records


def test_a_run_is_read_back(make_run):
    record = read_record(make_run("a", findings="- warning: X-1: a | b"))
    assert (record.label, len(record.lines), record.settings["optimizer.lr"]) == ("a", 201, 6e-4)
    assert [line.step for line in record.measured] == list(range(0, 201, 20))
    assert record.card.findings == (("warning", "X-1: a | b"),)
    assert dict(record.card.facts)["attention"] == "sdpa (as asked)"
    assert dict(record.card.about)["corpus"] == "a | b"
    assert record.card.sample[0].endswith('number."""\n')
    assert record.card.sample[1].startswith("    if n < 2:")


def test_a_checkpoint_of_the_run_means_the_run(make_run):
    folder = make_run("a")
    (folder / "step-000100").mkdir()
    assert read_record(folder / "step-000100").folder == folder


def test_a_run_under_way_has_no_card(make_run):
    assert read_record(make_run("a", card=False)).card is None


def test_runs_of_one_name_are_told_apart_and_a_run_named_twice_is_refused(make_run):
    one, two = make_run("a"), make_run("a", folder="others")
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
def test_a_damaged_line_is_named_by_number(make_run, line, message):
    folder = make_run("a", steps=3)
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(RunError, match=message):
        read_record(folder)


def test_a_last_line_that_a_crash_cut_is_left_out(make_run):
    path = make_run("a", steps=3) / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert read_record(path.parent).lines[-1].step == 2


def test_bytes_that_are_no_text_are_refused(make_run):
    path = make_run("a") / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(RunError, match="UTF-8"):
        read_record(path.parent)


def test_a_folder_without_metrics_is_refused(make_run, tmp_path):
    folder = make_run("a")
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="no metrics yet"):
        read_record(folder)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="no metrics"):
        read_record(folder)
    with pytest.raises(RunError, match="no such run"):
        read_record(tmp_path / "nothing")


def test_damaged_settings_are_refused(make_run):
    folder = make_run("a")
    (folder / "config.toml").write_text("[model]\nname = 3\n")
    with pytest.raises(ConfigError, match="unknown settings"):
        read_record(folder)


@pytest.mark.parametrize("text", ["", "# mine\n\nwritten by hand", "\n## Preflight\n", "\n## Sample\n\n```\n", "| a |\n|\n"])
def test_a_card_that_a_person_rewrote_is_no_fault(text):
    assert parse_card(text).sample is None


def test_a_sample_may_hold_what_looks_like_the_cards_own_headings():
    prompt, said = "x\n## Preflight\n", "\n## Settings\n"
    card = (
        f"# r\n\n## Sample\n\nGreedy:\n\n```\n{prompt}\n```\n\n```\n{said}\n```\n\n## Preflight\n\n| fact |  |\n| --- | --- |\n"
    )
    parsed = parse_card(card + "| file | none |\n\nNo finding.\n\n## Settings\n")
    assert parsed.sample == (prompt, said)
    assert parsed.facts == (("file", "none"),)


def test_any_bytes_for_metrics_are_one_kind_of_error(make_run):
    path = make_run("a") / "metrics.jsonl"
    for content in (b"\x00\n", b"1\n", b"null\n", b'{"step": 0, "loss": [1]}\n', json.dumps({"step": -5}).encode() + b"\n"):
        path.write_bytes(content)
        with pytest.raises(AprTrainError):
            read_record(path.parent)

"""A run's own files, damaged: each is refused by its name and, of lines, by the number."""

import json
import re
import time

import pytest
from apr_train.errors import ConfigError, FormatError, RunError
from apr_train.run.changes import read_changes
from apr_train.run.course import course
from apr_train.run.folder import require_unused
from apr_train.run.identity import RunIdentity, read_identity, write_identity
from apr_train.run.metrics import cut_back, read_metrics
from apr_train.run.samples import read_samples
from apr_train.run.settings import ModelSettings, Settings
from apr_train.run.settings_file import read_toml

IDENTITY = RunIdentity(corpus="a", tokenizer="b", init=None)
DEEP = "[" * 100_000
WHOLE = json.dumps({"corpus": "a", "tokenizer": "b", "init": None, "split": "x"})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff", b"[]", b"{}", b"null", DEEP.encode(), b'{"corpus": NaN}', b'{"corpus": ' + b"1" * 5000 + b"}",
        WHOLE.replace('"a"', "1").encode(), WHOLE.replace('"a"', "null").encode(), WHOLE.replace('"b"', "[]").encode(),
        WHOLE.replace('"init"', '"in\\u001b[2Jit"').encode(), WHOLE.replace('"x"', "{}").encode(),
        b"\xef\xbb\xbf" + WHOLE.encode(),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_damaged_identity_is_refused(tmp_path, content):
    (tmp_path / "identity.json").write_bytes(content)
    with pytest.raises(RunError, match=r"identity\.json: the run does not say what it was started on") as caught:
        read_identity(tmp_path)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_an_identity_comes_back(tmp_path):
    write_identity(tmp_path, IDENTITY)
    assert read_identity(tmp_path) == IDENTITY


def test_a_folder_with_a_damaged_identity_is_somebody_s(tmp_path):
    (tmp_path / "identity.json").write_text(DEEP)
    with pytest.raises(RunError, match="not empty"):
        require_unused(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 2, "loss": "1"}', "loss is no number"),
        ('{"step": 2, "loss": [1]}', "loss is no number"),
        ('{"step": 2, "val_loss": {"a": "b"}}', "val_loss is no number"),
        ('{"step": 2, "lr": true}', "lr is no number"),
        ('{"step": "2"}', "step is no number"),
        ('{"step": 2.0}', "the step is wrong"),
        ('{"step": -1}', "the step is wrong"),
        ('{"step": 9223372036854775808}', "the step is wrong"),
        ('{"step": null}', "the step is wrong"),
        ('{"step": 1}', "the step is wrong"),
        ('{"step": 2, "source_val_loss": {"a": null}}', "source_val_loss.a is no number"),
        ('{"step": 2, "source_tokens": 5}', "source_tokens is no object"),
        ('{"step": 2, "loss": NaN}', "NaN"),
        ('{"step": 2, "loss": ' + "1" * 5000 + "}", "5,000 digits"),
        (DEEP, "nested too deep"),
        (r'{"step": 2, "\u001b[2J": 1}', "not a line of metrics"),
        ("\xff", "is not UTF-8"),
        ("", "JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_damaged_line_of_metrics_is_refused_also_at_a_resume(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n', encoding="latin-1")
    before = path.read_bytes()
    for read in (read_metrics, lambda path: cut_back(path, 3)):
        with pytest.raises(RunError, match=rf"metrics\.jsonl: line 2.*({message})"):
            read(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line", ['{"step": NaN, "prompt": "a", "text": "b"}', '{"step": true, "prompt": "a", "text": "b"}', DEEP]
)
def test_a_damaged_sample_is_refused(tmp_path, line):
    path = tmp_path / "samples.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunError, match="line 1 is not"):
        read_samples(path)


CHANGE = {"step": 4, "setting": "optimizer.lr", "before": 1e-3, "after": 1e-4}


def changes(tmp_path, *lines):
    path = tmp_path / "changes.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "line",
    [
        {**CHANGE, "step": 3},
        {**CHANGE, "step": -1},
        {**CHANGE, "step": 2**31},
        {**CHANGE, "step": True},
        {**CHANGE, "before": "\x1b[2J"},
        {**CHANGE, "after": "x" * 9000},
        {**CHANGE, "setting": "\x1b[2J.lr"},
        {**CHANGE, "setting": "lr"},
        {**CHANGE, "setting": ["optimizer.lr"]},
        {**CHANGE, "more": 1},
        [],
        '{"step": NaN}',
        DEEP,
    ],
    ids=lambda value: repr(value)[:70],
)
def test_a_damaged_change_of_a_setting_is_refused(tmp_path, line):
    with pytest.raises(RunError, match=r"changes\.jsonl.*: line 2 .*Move the file away") as caught:
        read_changes(changes(tmp_path, CHANGE, line))
    assert len(str(caught.value)) < 2000


def test_changes_without_end_are_refused(tmp_path):
    with pytest.raises(RunError, match="expected at most 1,048,576 bytes"):
        read_changes(changes(tmp_path, *[CHANGE] * 20_000))


def test_a_change_of_another_version_s_setting_is_told_short_and_printable(tmp_path):
    [change] = read_changes(changes(tmp_path, {**CHANGE, "setting": "data.odd", "before": "\x1b[2J" * 9000, "after": [1, [2]]}))
    assert len(str(change)) < 1200
    assert str(change).startswith(r"--odd \x1b[2J\x1b[2J")


def test_of_many_changes_the_first_are_told(tmp_path):
    told = course([], Settings(), None, read_changes(changes(tmp_path, *[CHANGE] * 15)))["changed"]
    assert told.endswith("from step 5 on and 3 more")
    assert told.count("--lr") == 12


def test_lines_are_read_as_far_as_they_are_whole_and_right(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' * 3_000_000)  # a reader of all before the first fault would take seconds, and a gigabyte
    start = time.process_time()
    with pytest.raises(RunError, match="line 2: the step is wrong"):
        read_metrics(path)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "text",
    [
        "[run]\nsteps = nan",
        "[run]\nsteps = " + "1" * 5000,
        "[run]\nsteps = 1979-05-27",
        "[model]\narch = [[[]]]",
        "run = 1",
        "[run]\n[run]",
    ],
)
def test_damaged_settings_are_refused(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises((ConfigError, FormatError), match=re.escape(str(path))):
        read_toml(path)


def test_a_setting_that_no_file_can_hold_is_refused():
    with pytest.raises(ConfigError, match=r"tokenizer .*: no text, expected valid Unicode.* found a\\xe9"):
        ModelSettings(tokenizer="a\udce9")

"""preflight.json: a report comes back as it was judged; a damaged file is an error that names it."""

import json

import pytest
from apr_train.errors import Finding, RunError
from apr_train.preflight import Report
from apr_train.run.preflight_file import PreflightRecord, read_preflight, write_preflight

WARNING = Finding(
    rule="PREFLIGHT-016",
    subject="--device",
    problem="too little",
    expected="3 GB",
    found="2 GB | 1",
    hint="Free some.",
    severity="warning",
)
WHOLE = Report(findings=(WARNING,), facts={"file": "a\udcff", "memory": {"weights": 4}}).to_dict()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "preflight.json"


def test_findings_and_facts_come_back_equal(path):
    write_preflight(path, WHOLE)
    assert read_preflight(path) == PreflightRecord(findings=(WARNING,), facts=WHOLE["facts"])
    assert json.loads(path.read_text()) == WHOLE


def test_no_file_is_no_preflight(path):
    assert read_preflight(path) is None


def test_facts_are_told_in_words():
    facts = {
        "memory": {"weights": 3_300_000, "logits": 2e9},
        "fresh": [],
        "ignored": {},
        "tie": {"value": None},
        "file": "a.apr",
    }
    assert PreflightRecord(facts=facts).rows == [
        ("memory", "weights: 3.3 MB, logits: 2.0 GB"),
        ("fresh", "none"),
        ("ignored", "none"),
        ("tie", "value: None"),
        ("file", "a.apr"),
    ]


@pytest.mark.parametrize("memory", [None, "much", {"weights": "much"}])
def test_memory_that_is_no_number_is_shown_as_it_is(memory):
    assert PreflightRecord(facts={"memory": memory}).rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "another version"),
        ({"findings": None}, "no preflight"),
        ({"facts": []}, "no preflight"),
        ({"findings": [{"id": "x"}]}, "a finding is damaged"),
        ({"findings": ["x"]}, "a finding is damaged"),
        ({"findings": [WARNING.to_dict() | {"severity": "worse"}]}, "a finding is damaged"),
        ({"findings": [WARNING.to_dict() | {"hint": None}]}, "a finding is damaged"),
    ],
)
def test_what_is_no_preflight_is_refused(path, change, message):
    path.write_text(json.dumps(WHOLE | change))
    with pytest.raises(RunError, match=rf"preflight\.json: .*{message}"):
        read_preflight(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON: .* line 1 "),
        (b'{\n"schema": 1,\n!', "not valid JSON: .* line 3 "),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"[" * 500 + b"]" * 500, "nested too deep"),
        (b'{"schema": NaN}', "NaN is not a JSON number"),
        (b'{"schema": ' + b"1" * 5000 + b"}", "5,000 digits"),
    ],
)
def test_what_is_no_json_object_is_refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"preflight\.json: .*{message}"):
        read_preflight(path)

"""`--eval`: what it names, and how what it does not is told."""

import pytest
from apr_train import rules
from apr_train.errors import ConfigError
from apr_train.run.evaluation_names import parse_evaluations


def test_names_and_numbers_are_read_in_one_order():
    assert dict(parse_evaluations("syntax:20, fim:50")) == {"fim": 50, "syntax": 20}
    assert list(parse_evaluations("syntax:20,fim:50")) == ["fim", "syntax"]
    assert parse_evaluations(None) == {}


@pytest.mark.rule("EVAL-001")
def test_what_is_no_evaluation_is_told_all_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_evaluations("fmi:5,syntax:0,fim:3,fim:4,syntax,syntax:²,")
    findings = caught.value.findings
    assert {finding.rule for finding in findings} == {rules.EVAL_001}
    assert [finding.problem for finding in findings] == [
        "no such evaluation",
        "syntax without how many",
        "fim is asked twice",
        "syntax without how many",
        "syntax without how many",
        "no such evaluation",
    ]
    assert "fim" in findings[0].hint

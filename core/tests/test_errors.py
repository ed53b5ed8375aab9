"""Messages: where, what, expected, found, what to do."""

import inspect

import pytest
from apr_train import errors
from apr_train.errors import AprTrainError, ConfigError, Finding, FormatError, PluginError, PreflightError
from apr_train.suggest import closest, did_you_mean


def test_a_message_has_every_part_in_order():
    error = AprTrainError("wrong size", where="x.apr", expected=4, found=5, hint="Make it 4.")
    assert str(error) == "x.apr: wrong size, expected 4, found 5. Make it 4."


def test_a_message_leaves_out_what_is_not_known():
    assert str(AprTrainError("wrong size")) == "wrong size"
    assert str(AprTrainError("wrong size", found=0)) == "wrong size, found 0"


def test_a_format_error_names_the_file_and_the_field():
    error = FormatError("bad checksum", path="x.apr", field="index", expected="aa", found="bb")
    assert str(error) == "x.apr [index]: bad checksum, expected aa, found bb"
    assert (error.finding.subject, error.finding.field) == ("x.apr", "index")


def test_a_plugin_error_keeps_whose_fault_it_is():
    error = PluginError("broken", distribution="d", version="1", hook="build_config")
    assert (error.distribution, error.version, error.hook) == ("d", "1", "build_config")


def test_a_preflight_error_lists_every_error_and_keeps_the_warnings():
    found = [
        Finding(rule=f"R-{n}", subject="w", problem="p", severity=kind) for n, kind in enumerate(["error", "warning", "error"])
    ]
    error = PreflightError(found)
    assert str(error) == "R-0: w: p\nR-2: w: p"
    assert error.findings == tuple(found)


@pytest.mark.parametrize("kind", [AprTrainError, ConfigError, FormatError, PluginError, PreflightError])
def test_an_error_of_several_faults_tells_each_on_a_line(kind):
    error = kind.of([Finding(problem="one", subject="a"), Finding(problem="two", subject="b")])
    assert type(error) is kind
    assert str(error) == "a: one\nb: two"
    assert error.finding.problem == "one"


def test_a_finding_reads_like_an_error():
    finding = Finding(rule="R-1", subject="x.apr", problem="wrong", expected="4", found="5", hint="Make it 4.")
    assert str(finding) == "R-1: x.apr: wrong, expected 4, found 5. Make it 4."


def test_every_error_has_one_base_and_a_documented_exit_code():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert all(issubclass(kind, AprTrainError) for kind in kinds)
    assert {kind: kind.exit_code for kind in kinds if kind.exit_code != 1} == {PreflightError: 3}


def test_errors_are_caught_by_their_base():
    with pytest.raises(AprTrainError):
        raise ConfigError("bad")


def test_the_closest_name_is_offered_or_all_are_listed():
    assert closest("inspct", ["inspect", "import"]) == "inspect"
    assert did_you_mean("inspct", ["inspect", "import"]) == "did you mean inspect?"
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
    assert did_you_mean("zzz", []) == "nothing is known"

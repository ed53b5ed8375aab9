"""Messages: where, what, expected, found, what to do."""

import inspect

import pytest
from apr_train import errors
from apr_train.errors import AprTrainError, ConfigError, Finding, FormatError, PluginError, PreflightError, printable
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\ud800", r"\ud800"),
        ("caf\udce9.txt", r"caf\xe9.txt"),
        ("naïve → 日本 👩‍💻", "naïve → 日本 👩‍💻"),
    ],
)
def test_what_cannot_be_printed_is_spelt(text, shown):
    assert printable(text) == shown
    shown.encode()


def test_a_text_of_several_lines_keeps_them_and_is_cut_where_it_is_too_long():
    assert printable("a\nb\x1b", lines=True) == "a\nb\\x1b"
    assert printable("x" * 2000, most=10) == "xxxxxxxxxx… (2,000 characters)"


def test_a_message_says_what_a_file_has_without_obeying_it():
    error = FormatError("bad name", path="a\x1b[2J.apr", field="w\n\x9b", found="\x1b[31m", hint="Rename it.")
    assert str(error) == r"a\x1b[2J.apr [w\x0a\x9b]: bad name, found \x1b[31m. Rename it."
    assert error.finding.field == "w\n\x9b"


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_no_message_is_longer_than_4_kb(count):
    long = Finding(problem="é" * 1_000_000, subject="s" * 5000, field="f" * 5000, found="x" * 20_000_000)
    text = str(AprTrainError.of([long] * count))
    assert len(text.encode()) <= 4096
    assert "1,000,000 characters" in text or "characters)" in text
    assert count == 1 or text.endswith(f"and {count - 1} more faults")


def test_a_finding_that_is_made_of_another_is_not_cut_twice():
    long = Finding(problem="x" * 10_000)
    assert Finding(problem=long.problem).problem == long.problem


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no")


def test_a_value_that_cannot_be_shown_is_said_to_be_one():
    assert str(AprTrainError("bad", found=Unprintable())) == (
        "bad, found a value of type Unprintable that cannot be shown (RuntimeError)"
    )
    assert "type int that cannot be shown" in str(AprTrainError("bad", found=10**5000))

"""A mistyped command line is answered with what to type."""

import shlex
import subprocess

import pytest
from apr_train.cli import cli
from click.testing import CliRunner


def refused(*args):
    """The last line of what wrong usage prints."""
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 2, done.output
    return done.stderr.splitlines()[-1].removeprefix("Error: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--learning-rate 1e-4", "No such option '--learning-rate'. Here that is --lr."),
        ("--learning_rate=1e-4", "No such option '--learning_rate'. Here that is --lr."),
        ("train --max-seq-length 5", "No such option '--max-seq-length'. Here that is --sequence-length."),
        ("--batch_size 2", "No such option '--batch_size'. Did you mean '--batch-size'?"),
        ("-lr 1", "No such option '-lr'. Did you mean '--lr'?"),
        ("--no-torch-compile", "No such option '--no-torch-compile'. Here that is --no-compile."),
        ("--bf16", "No such option '--bf16'. That is --precision bf16."),
        ("eval x.apr --max-length 5", "No such option '--max-length'. Here that is --sequence-length."),
        (
            "generate x.apr --max-new-tokens 5",
            "No such option '--max-new-tokens'. (Did you mean one of: '--fim-tokens', '--max-tokens'?)",
        ),
        ("--precision bfloat16", "'bf16-weights'. Here that is bf16."),
        ("--objective mlm", "'masked-lm'. Here that is masked-lm."),
        ("--batch-size 2k", "'2k' is not a valid integer. Write 2000."),
        ("--steps 1e3", "'1e3' is not a valid integer. Write 1000."),
        ("--steps 10,000", "'10,000' is not a valid integer. Write 10000."),
        ("--steps 1.5", "'1.5' is not a valid integer."),
        ("--lr 0,001", "'0,001' is not a valid float. Write 0.001."),
        ("--validation-fraction 5%", "'5%' is not a valid float. Write 0.05."),
        ("--lr much", "'much' is not a valid float."),
        ("--steps inf", "'inf' is not a valid integer."),
        ("m.apr", "Got an unexpected word (m.apr). Each value follows its option: --init FILE, --data PATH."),
    ],
)
def test_wrong_usage_ends_with_what_to_type(args, message):
    words = args.split()
    assert refused(*(words if words[0] != "m.apr" else ["train", *words])).endswith(message)


def test_advice_about_training_is_given_for_training_alone():
    assert "counted in --steps" in refused("--arch", "x", "--epochs", "3")
    assert "counted in" not in refused("eval", "x.apr", "--epochs", "3")


@pytest.mark.parametrize(
    ("made", "pattern"),
    [
        (("src/a.py", "src/b.py", "src/c.py", "src/d.py"), "src/*.py"),
        (("a.txt", "b.txt"), "*.txt"),
        (("src/a.py", "src/deep/b.py"), "src/**/*.py"),
        (("my src/a.py", "my src/b.py"), "my src/*.py"),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_a_pattern_that_the_shell_expanded_is_given_back_in_quotes(tmp_path, made, pattern, joined):
    """And the shell gives it to the program as it is."""
    first = [f"--data={made[0]}"] if joined else ["--data", made[0]]
    message = refused("--arch", "x", *first, *made[1:], "--steps", "3")
    assert message.startswith(f"--data takes one value, and here are {len(made)} (")
    typed = message[message.rindex("--data") :]
    assert typed == f"--data '{pattern}'"
    printed = subprocess.run(["sh", "-c", f"printf '%s\\n' {typed}"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert printed.stdout.splitlines() == ["--data", pattern]


def test_values_that_no_pattern_made_are_repeated():
    message = refused("--data", "my notes", "b.txt", "--arch", "x")
    assert shlex.split(message[message.index("again:") + len("again:") :]) == ["--data", "my notes", "--data", "b.txt"]

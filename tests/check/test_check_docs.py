"""docs/preflight.md describes what is printed."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from apr_train.cli import cli
from click.testing import CliRunner

DOCS = Path(__file__).parents[2] / "docs"


def words(text):
    return set(re.findall(r"`(\w+)`", text)) | set(re.findall(r'"(\w+)"', text))


def test_every_key_of_the_json_is_documented(build, check, spec):
    checked = check(build.apr("qwen2", tokenizer=spec(1024)), "--device", "cpu", "--sequence-length", 10**6)
    report = checked.report
    keys = {*report, *report["findings"][0], *report["facts"], *report["facts"]["tensors"], *report["facts"]["memory"]}
    assert keys - words((DOCS / "preflight.md").read_text()) == set()


def test_every_id_of_the_series_is_documented():
    rules = yaml.safe_load((DOCS / "contract.yaml").read_text())["rules"]
    ids = {rule["id"] for rule in rules if rule["id"].startswith("PREFLIGHT-")}
    assert set(re.findall(r"^\| (PREFLIGHT-\d+) ", (DOCS / "preflight.md").read_text(), re.MULTILINE)) == ids


def test_output_for_people_has_no_colour_in_a_pipe_and_json_is_json(build):
    path = str(build.apr("qwen2"))
    assert "\x1b" not in CliRunner().invoke(cli, ["check", path]).output
    assert json.loads(CliRunner().invoke(cli, ["check", path, "--json"]).stdout)["schema"] == 1


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_terminal_gets_a_coloured_table(build):
    path = build.apr("qwen2", metadata={"vocab_size": 1000})
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    environment |= {"COLUMNS": "200", "TERM": "xterm-256color"}
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", "from apr_train.cli import main; main()", "check", str(path)]
    done = subprocess.Popen(command, stdout=theirs, env=environment)
    os.close(theirs)
    chunks = []
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    os.close(ours)
    assert done.wait(timeout=60) == 3
    screen = b"".join(chunks).decode()
    header = next(line for line in screen.splitlines() if "what to do" in line)
    assert "\x1b[" in header
    assert re.search(r"\x1b\[[0-9;]*mFALSIFY-APR-PRETRAIN-INIT-005", screen)
    assert "[vocab_size]" in screen


def test_wrong_usage_is_status_2(build):
    assert CliRunner().invoke(cli, ["check", str(build.apr("qwen2")), "--preset", "tiny"]).exit_code == 2
    assert CliRunner().invoke(cli, ["check", "--objective", "guess"]).exit_code == 2

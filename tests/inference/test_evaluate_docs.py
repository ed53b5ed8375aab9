"""docs/evaluate.md names every key that the commands print as JSON, and every command line in it is one."""

import shlex
from pathlib import Path

import pytest
from apr_train.cli import cli

RARE = "Ā,ā,Ă"
"""Entries of a byte-level vocabulary that no source code has."""
DOCS = Path(__file__).parents[2] / "docs" / "evaluate.md"


@pytest.fixture(scope="module")
def text():
    return DOCS.read_text(encoding="utf-8")


def keys(value):
    if isinstance(value, dict):
        return set(value) | set().union(*(keys(item) for item in value.values()))
    return set().union(*(keys(item) for item in value)) if isinstance(value, list) else set()


def test_every_json_key_is_documented(apr, models, text):
    answers = [
        apr("eval", models.decoder, "--json"),
        apr("eval", models.decoder, "--reference", "--no-write", "--json"),
        apr("eval", models.decoder, "--syntax", 2, "--max-tokens", 4, "--json"),
        apr("eval", models.decoder, "--fim", 1, "--fim-tokens", RARE, "--json"),
        apr("generate", models.decoder, "--prefix", "x", "--fim-tokens", RARE, "--max-tokens", 1, "--json"),
        apr("generate", models.decoder, "--prompt", "x", "--max-tokens", 1, "--json"),
        apr("generate", models.encoder, "--fill-mask", "<mask>", "--json"),
    ]
    found = set().union(*(keys(answer.json) for answer in answers))
    difference = apr("diff", models.decoder, models.encoder, "--json", code=1).json
    found |= keys(difference | {"config": [], "tokenizer": [], "about": []})
    assert {key for key in found if f"`{key}`" not in text and f'"{key}"' not in text} == set()


def test_every_command_line_parses(text):
    lines = [line.strip() for line in text.splitlines() if line.startswith("    apr-train ")]
    assert len(lines) >= 6
    for line in lines:
        _, name, *arguments = shlex.split(line.split("   ")[0])
        command = cli.get_command(None, name)
        command.make_context(name, arguments)

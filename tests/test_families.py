"""The example families of docs/families: built as wheels, installed side by side without their sources, and right."""

import ast
import json
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "docs" / "families"
FAMILIES = sorted(path.parent.name for path in ROOT.glob("*/pyproject.toml"))
PLUGINS = sorted(path.parent.name for path in (ROOT.parents[1] / "plugins").glob("*/pyproject.toml"))
MIXTURES = {"mixtral"}
"""Families of mixtures of experts, which may be longer."""


def code_lines(path):
    """Lines that hold code: neither blank, nor a comment, nor a docstring."""
    names = ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER")
    silent = {getattr(tokenize, name) for name in names}
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    lines = {line for token in tokens if token.type not in silent for line in range(token.start[0], token.end[0] + 1)}
    tree = ast.parse(path.read_text())
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)]
    texts = [node.body[0] for node in owners if ast.get_docstring(node) is not None]
    return len(lines - {line for text in texts for line in range(text.lineno, text.end_lineno + 1)})


def test_there_are_as_many_as_the_page_says():
    page = (ROOT / "README.md").read_text()
    assert [name for name in FAMILIES if f"[{name}]({name}/)" in page] == FAMILIES
    assert len(FAMILIES) >= 6


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_short(name):
    assert code_lines(ROOT / name / f"apr_train_{name}.py") <= (100 if name in MIXTURES else 70)


def test_every_example_that_reads_a_gguf_has_one_of_llama_cpp():
    wanted = {path.parent.name for path in ROOT.glob("*/test_*.py") if "llama-cpp.gguf" in path.read_text()}
    assert {path.parent.name for path in ROOT.glob("*/llama-cpp.gguf")} == wanted
    assert len(wanted) >= 10


def test_all_are_listed_side_by_side(examples, tmp_path):
    done = examples.run(tmp_path, "-c", "from apr_train.cli import main; main()", "plugins")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert set(FAMILIES) <= listed
    assert "broken" not in done.stdout


def test_each_is_the_one_that_its_certificate_is_of(examples, tmp_path):
    """`make certificates` measures them anew; .ci/run does with every installed one."""
    done = examples.run(tmp_path, "-c", "from apr_train.cli import main; main()", "plugins", "--json")
    listed = {item["name"]: item["certificate"] for item in json.loads(done.stdout)["families"]}
    states = {name: listed[name]["state"] for name in [*FAMILIES, *PLUGINS]}
    assert set(states.values()) == {"verified"}, states
    assert all(listed[name]["against"].startswith("transformers ") for name in states)


def test_the_tests_of_each_pass(examples, tmp_path):
    """In one process, for speed; .ci/run installs one after the other into a clean environment."""
    tests = [str(path) for name in FAMILIES for path in sorted((ROOT / name).glob("test_*.py"))]
    done = examples.run(
        tmp_path, "-m", "pytest", "-q", "-W", "error", "--import-mode=importlib", "-p", "no:cacheprovider", *tests
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert "skipped" not in done.stdout.splitlines()[-1]

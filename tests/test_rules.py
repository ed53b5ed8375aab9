"""Rule ids stand once, mean something, and nobody reads a message back: facts travel in the fields of a finding."""

import ast
from pathlib import Path

import pytest
import yaml
from apr_train import rules

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "core" / "src").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")])
IDS = {name: value for name, value in vars(rules).items() if name.isupper()}
RAISED = 71
"""Rules of the contract that a run or a check can report, as many as before the rooms; a new rule raises it."""
MESSAGE = {"where", "subject", "problem", "hint"}
CUTS = {
    *("partition", "rpartition", "split", "rsplit", "splitlines", "removeprefix", "removesuffix", "startswith", "endswith"),
    *("find", "rfind", "index", "strip", "lstrip", "rstrip", "match", "fullmatch", "search", "finditer", "findall", "sub"),
}


def nodes_of(tree, kind):
    return [node for node in ast.walk(tree) if isinstance(node, kind)]


def nodes(path, kind):
    return nodes_of(ast.parse(path.read_text()), kind)


def uses(path):
    """The names of `rules` that a module takes, other than to compare with them."""
    tree = ast.parse(path.read_text())
    compared = {id(part) for node in nodes_of(tree, ast.Compare) for part in ast.walk(node)}
    found = [node for node in nodes_of(tree, ast.Attribute) if id(node) not in compared]
    named = [node.attr for node in found if isinstance(node.value, ast.Name) and node.value.id == "rules"]
    return {name for name in named if name.isupper()}


def test_every_id_stands_once():
    assert len(set(IDS.values())) == len(IDS)
    written = [
        (path.name, node.value)
        for path in SOURCES
        if path.name != "rules.py"
        for node in nodes(path, ast.Constant)
        if isinstance(node.value, str) and node.value in IDS.values()
    ]
    assert written == []


def test_every_id_is_a_rule_of_the_contract():
    known = {rule["id"] for rule in yaml.safe_load((ROOT / "docs" / "contract.yaml").read_text())["rules"]}
    assert {value for value in IDS.values() if not value.startswith("APR-")} <= known


def test_every_rule_can_still_be_reported():
    """And none that no code reports stands in the list; a comparison with a rule reports nothing."""
    used = set().union(*(uses(path) for path in SOURCES))
    assert used == set(IDS)
    assert len([name for name in used if not name.startswith("APR_")]) == RAISED


def cut_messages(tree):
    """Calls that take a finding's text apart: a method of it, or a pattern over it."""
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in CUTS:
            parts = [part for part in (called.value, *node.args) if isinstance(part, ast.Attribute)]
            if any(part.attr in MESSAGE for part in parts):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_is_taken_apart(path):
    assert list(cut_messages(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "error.where.rpartition('.')",
        "PATTERN.search(finding.where)",
        "re.sub('a', '', f.problem)",
        "finding.subject.split(':')",
    ],
)
def test_taking_a_message_apart_would_be_seen(code):
    assert list(cut_messages(ast.parse(code)))


def test_no_card_is_read_back():
    """A model card is for people; what a program wants to know of a run stands in its JSON files."""
    for path in SOURCES:
        for function in nodes(path, ast.FunctionDef):
            said = ast.unparse(function)
            assert not ("CARD" in said and ("read_text" in said or "parse" in said)), f"{path}: {function.name}"

"""The contract is valid, and every rule in it is bound to tests that exist, run, and say so themselves."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent
CONTRACT = ROOT / "docs" / "contract.yaml"
SPEC = importlib.util.spec_from_file_location("contract", ROOT / "tools" / "contract.py")
tool = importlib.util.module_from_spec(SPEC)
sys.modules["contract"] = tool
SPEC.loader.exec_module(tool)
COLLECT = """
import json, sys
import pytest

class Dump:
    def pytest_collection_finish(self, session):
        rules = {}
        for item in session.items:
            node = item.nodeid.partition("[")[0]
            rules.setdefault(node, set()).update(name for mark in item.iter_markers("rule") for name in mark.args)
        print("RULES" + json.dumps({node: sorted(names) for node, names in rules.items()}))

sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "--strict-markers", *sys.argv[1:]], plugins=[Dump()]))
"""

pytestmark = pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-008", "FALSIFY-APR-PRETRAIN-INIT-008")


@pytest.fixture(scope="module")
def contract():
    return tool.load_contract(CONTRACT)


def test_every_named_test_is_collected_and_carries_the_rule(contract):
    files = sorted({test.partition("::")[0] for rule in contract.rules for test in rule.tests})
    command = [sys.executable, "-c", COLLECT, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RULES"))
    collected = json.loads(line.removeprefix("RULES"))
    unbound = [
        f"{rule.id}: {test} {'has no such marker' if test in collected else 'is not collected'}"
        for rule in contract.rules
        for test in rule.tests
        if rule.id not in collected.get(test, ())
    ]
    assert not unbound, "\n".join(unbound)


def test_every_rule_that_needs_no_gpu_names_a_test(contract):
    assert [rule.id for rule in contract.rules if not rule.tests and "-CUDA-" not in rule.id] == []


def test_every_marker_in_the_tests_is_a_rule_of_the_contract(contract):
    known = {rule.id for rule in contract.rules}
    folders = [ROOT / "core" / "tests", ROOT / "tests", *(ROOT / "plugins").glob("*/tests")]
    marked = {
        argument.value: path.name
        for folder in folders
        for path in folder.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.rule")
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    assert {name: path for name, path in marked.items() if name not in known} == {}


def test_every_id_of_a_finding_in_the_code_is_a_rule_of_the_contract(contract):
    known = {rule.id for rule in contract.rules}
    prefixes = ("FALSIFY-APR-PRETRAIN-", "PREFLIGHT-", "WRITE-")
    for path in [*(ROOT / "core" / "src").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(prefixes):
                assert node.value.partition(":")[0] in known, f"{path}: {node.value}"


def test_every_rule_of_the_series_is_there(contract):
    wanted = [f"FALSIFY-APR-PRETRAIN-{series}-{number:03d}" for series in ("ARCH", "INIT") for number in range(1, 11)]
    wanted += ["FALSIFY-APR-PRETRAIN-INIT-CUDA-001", "INV-TRAIN-007", "INV-TRAIN-011"]
    wanted += [f"INV-ARCH-370M-{number:03d}" for number in range(1, 10)]
    assert [name for name in wanted if name not in {rule.id for rule in contract.rules}] == []


def test_rendered_page_is_fresh(contract):
    assert (ROOT / "docs" / "contract.md").read_text() == tool.render(contract), "stale: run make docs"


def test_command_prints_the_scoreboard(contract):
    done = CliRunner().invoke(tool.command, [str(CONTRACT)])
    assert done.exit_code == 0
    for rule in contract.rules:
        assert rule.id in done.output
    assert f"{len(contract.rules)} rules" in done.output


def test_rendering_command_prints_the_page(contract):
    assert CliRunner().invoke(tool.command, [str(CONTRACT), "--render"]).output == tool.render(contract)


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(tool.schema())


def broken(**changes):
    rule = {
        "id": "PREFLIGHT-001",
        "checked": "preflight",
        "rule": "a",
        "prediction": "b",
        "evidence": "PARTIAL",
        "if_it_fails": "c",
        "tests": ["tests/test_x.py::test_y"],
    }
    return {key: value for key, value in (rule | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([broken(tests=[])], "PREFLIGHT-001.tests"),
        ([broken(tests=[], evidence="OPEN")], "PREFLIGHT-001"),
        ([broken(id="RULE-1")], "RULE-1"),
        ([broken(checked="later")], "later"),
        ([broken(evidence="SURE")], "SURE"),
        ([broken(prediction=None)], "prediction"),
        ([broken(tests=["somewhere"])], "somewhere"),
        ([broken(colour="red")], "colour"),
        ([broken(), broken()], "2 rules have this id"),
        ([], "rules"),
        ("none", "none"),
    ],
)
def test_broken_contract_is_refused_with_the_place(tmp_path, rules, message):
    path = tmp_path / "contract.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "rules": rules}))
    done = CliRunner().invoke(tool.command, [str(path)])
    assert done.exit_code == 1
    assert message in done.output


@pytest.mark.parametrize("content", [None, "rules: [", "", "\xff\xfe"])
def test_file_that_is_no_contract_is_refused(tmp_path, content):
    path = tmp_path / "contract.yaml"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    done = CliRunner().invoke(tool.command, [str(path)])
    assert done.exit_code == 1
    assert str(path) in done.output


@pytest.mark.parametrize(("name", "code"), [("FALSIFY-APR-PRETRAIN-INIT-CUDA-001", 0), ("INV-TRAIN-007", 1)])
def test_only_a_rule_that_needs_a_gpu_may_be_open(tmp_path, name, code):
    path = tmp_path / "contract.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "rules": [broken(id=name, checked="run", tests=[], evidence="OPEN")]}))
    assert CliRunner().invoke(tool.command, [str(path)]).exit_code == code

"""The contract as data: docs/contract.yaml read, validated against its schema, counted, and rendered for people.

python tools/contract.py               validate it and print the scoreboard
python tools/contract.py --render      print docs/contract.md
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import jsonschema
import yaml
from apr_train.errors import AprTrainError, FormatError
from attrs import frozen

HERE = Path(__file__).parent
DEFAULT = HERE.parent / "docs" / "contract.yaml"
LEVELS = ("OPEN", "PARTIAL", "INTEGRATION", "FUNCTIONAL", "DISCHARGED")
"""Evidence, weakest first: none yet; the algorithm tested; through the command line; on real files; on a real run."""
STAGES = ("build", "preflight", "load", "run")


@frozen(kw_only=True)
class ContractRule:
    """One thing that must never happen silently."""

    id: str
    checked: str
    """Where it bites: build (tests of the families), preflight (header only), load (weights), run."""
    rule: str
    prediction: str
    """What is seen when the rule holds, and what when it is broken."""
    evidence: str
    """One of `LEVELS`."""
    if_it_fails: str
    """What a failure means."""
    tests: tuple[str, ...]
    """pytest node ids without parameters; each carries the marker `rule` with this id."""
    note: str = ""


@frozen(kw_only=True)
class Contract:
    """All rules, in the file's order."""

    rules: tuple[ContractRule, ...]

    def scoreboard(self) -> list[tuple[str, ...]]:
        """One row a stage: its name, the number of rules at each level, the number of rules."""
        counts = Counter((rule.checked, rule.evidence) for rule in self.rules)
        return [
            (stage, *(str(counts[stage, level]) for level in LEVELS), str(sum(counts[stage, level] for level in LEVELS)))
            for stage in STAGES
        ]

    def open_rules(self) -> list[ContractRule]:
        """Rules without evidence yet."""
        return [rule for rule in self.rules if rule.evidence == "OPEN"]


def load_contract(path: Path) -> Contract:
    """Read and validate a contract file.

    Raises:
        FormatError: when it is missing, no YAML, or breaks the schema; every fault is named with its place.
    """
    data = _parse(path)
    faults = [*_schema_faults(data), *_repeated(data)]
    if faults:
        raise FormatError("the contract is not valid:\n" + "\n".join(f"  {fault}" for fault in faults), path=path)
    return Contract(rules=tuple(ContractRule(**{**rule, "tests": tuple(rule["tests"])}) for rule in data["rules"]))


def schema() -> dict[str, Any]:
    """The JSON schema of docs/contract.yaml,"""
    loaded: dict[str, Any] = json.loads((HERE / "contract.schema.json").read_text(encoding="utf-8"))
    return loaded


def _parse(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", path=path, hint="Name the file, or run at the root.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"not valid YAML: {error}", path=path) from error


def _schema_faults(data: Any) -> list[str]:
    errors = sorted(jsonschema.Draft202012Validator(schema()).iter_errors(data), key=lambda error: list(map(str, error.path)))
    return [f"{_place(data, list(error.absolute_path))}: {error.message:.200}" for error in errors]


def _place(data: Any, path: list[Any]) -> str:
    """`rules[3]` by its id where it has one."""
    if len(path) > 1 and isinstance(data["rules"][path[1]], Mapping):
        name = data["rules"][path[1]].get("id", f"rules[{path[1]}]")
        return ".".join([str(name), *(str(part) for part in path[2:])])
    return ".".join(str(part) for part in path) or "the file"


def _repeated(data: Any) -> list[str]:
    rules = data.get("rules") if isinstance(data, Mapping) else None
    ids = [rule.get("id") for rule in rules if isinstance(rule, Mapping)] if isinstance(rules, list) else []
    return [f"{name}: {count} rules have this id" for name, count in Counter(map(str, ids)).items() if count > 1]


def render(contract: Contract) -> str:
    """The contract as Markdown: the scoreboard, then one section a rule."""
    lines = [
        "# The contract",
        "",
        "What must never happen silently, each with an id. A violated rule stops a run before its first step, with the id in",
        "the message. This page is made from [contract.yaml](contract.yaml) by `make docs`.",
        "",
        "`checked` says where a rule bites: *build* (tests of the families), *preflight* (header only), *load* (weights),",
        "*run*. Evidence is OPEN (none yet), PARTIAL (the algorithm tested), INTEGRATION (through the command line),",
        "FUNCTIONAL (on real files) or DISCHARGED (shown on a real run).",
        "",
        *_table(("checked", *LEVELS, "rules"), contract.scoreboard()),
    ]
    for stage in STAGES:
        lines += ["", f"## {stage.capitalize()}"]
        for rule in contract.rules:
            lines += _section(rule) if rule.checked == stage else []
    return "\n".join(lines) + "\n"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(columns)
    body = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *body]


def _section(rule: ContractRule) -> list[str]:
    tests = [f"- `{test}`" for test in rule.tests] or ["- none yet"]
    note = ["", rule.note] if rule.note else []
    return [
        "",
        f"### {rule.id}",
        "",
        f"{rule.rule}",
        "",
        f"**Prediction.** {rule.prediction}",
        "",
        f"**If it fails.** {rule.if_it_fails}",
        *note,
        "",
        f"**Evidence.** {rule.evidence}",
        "",
        *tests,
    ]


@click.command("contract")
@click.argument("path", required=False, type=click.Path(path_type=Path), default=DEFAULT)
@click.option("--render", "as_markdown", is_flag=True, help="Print the contract as Markdown (docs/contract.md).")
def command(path: Path, as_markdown: bool) -> None:
    """Validate the contract against its schema and print the scoreboard; exit status 1 when it is not valid."""
    try:
        contract = load_contract(path)
    except AprTrainError as error:
        raise click.ClickException(str(error)) from error
    if as_markdown:
        click.echo(render(contract), nl=False)
        return
    for rule in contract.rules:
        click.echo(f"{rule.id:<38}{rule.checked:<11}{rule.evidence:<13}{len(rule.tests)} tests")
    click.echo("\n" + "\n".join(_table(("checked", *LEVELS, "rules"), contract.scoreboard())))
    click.echo(f"\n{len(contract.rules)} rules, {len(contract.open_rules())} open: valid")


if __name__ == "__main__":
    command()

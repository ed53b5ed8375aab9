"""`apr-train contract`: the rules that a run must not break, validated and counted."""

from __future__ import annotations

from pathlib import Path

import click

from apr_train.cli.output import emit_json, emit_table

DEFAULT = Path("docs/contract.yaml")


@click.command("contract")
@click.argument("path", required=False, type=click.Path(path_type=Path), default=DEFAULT)
@click.option("--render", "as_markdown", is_flag=True, help="Print the contract as Markdown (docs/contract.md).")
@click.option("--json", "as_json", is_flag=True, help="Print the rules as JSON.")
def command(path: Path, as_markdown: bool, as_json: bool) -> None:
    """Validate the contract against its schema and print the scoreboard.

    PATH is docs/contract.yaml by default. Exit status 1 when it is not valid.
    """
    from apr_train.contract import LEVELS, load_contract, render

    contract = load_contract(path)
    if as_markdown:
        click.echo(render(contract), nl=False)
        return
    if as_json:
        emit_json(list(contract.rules))
        return
    emit_table(("rule", "checked", "evidence", "tests"), [(r.id, r.checked, r.evidence, len(r.tests)) for r in contract.rules])
    click.echo()
    emit_table(("checked", *LEVELS, "rules"), contract.scoreboard())
    click.echo(f"\n{len(contract.rules)} rules, {len(contract.open_rules())} open: valid")

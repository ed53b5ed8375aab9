"""`apr-train new-family`: a family's package, from nothing or from a checkpoint. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import click

from apr_train.cli.options import UserPath
from apr_train.cli.output import emit_findings, say, tell


@click.command("new-family")
@click.argument("name")
@click.option(
    "--from", "origin", type=UserPath(path_type=Path), help="A checkpoint, or a config.json, that the family shall read."
)
@click.option("--out", type=UserPath(path_type=Path), help="The folder to write. Default: ./apr-train-NAME.")
def command(name: str, origin: Path | None, out: Path | None) -> None:
    """Write the package of a new family NAME: card, presets, names, tests, CI.

    Without --from it is a Llama with a tiny preset. With it, config and tensor names decide; what in them is not
    understood is listed here and in the package's README.
    """
    from apr_train.artifact.new_family.make import new_family
    from apr_train.artifact.new_family.package import MOST_FINDINGS

    made = new_family(name, origin=origin, target=out)
    emit_findings(made.findings[:MOST_FINDINGS])
    if len(made.findings) > MOST_FINDINGS:
        say(f"and {len(made.findings) - MOST_FINDINGS} more findings")
    for file in made.files:
        tell(f"{made.target / file}")
    left = len([finding for finding in made.findings if finding.severity == "error"])
    say(f"\n{_state(left)} Next:\n\n  cd {made.target}\n  pip install -e '.[test]'\n  pytest")
    say(f"  apr-train --arch {name} --preset tiny")


def _state(left: int) -> str:
    if not left:
        return "Nothing that the source says is left open; the tests compare what no source says."
    return f"{left} {'thing is' if left == 1 else 'things are'} left to do (README.md has the list)."

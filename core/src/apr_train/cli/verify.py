"""`apr-train verify`: what the kit measures of an installed family, as a certificate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_train.cli.options import UserPath, json_option
from apr_train.cli.output import emit_json, emit_table, say, tell

if TYPE_CHECKING:
    from apr_train.family.certificate import Certificate
    from apr_train.family.plugin import Family
    from apr_train.testing.verify import Against

EPILOG = "Example: apr-train verify mine --against transformers -o certificate.json"


@click.command("verify", epilog=EPILOG)
@click.argument("family", metavar="FAMILY")
@click.option(
    "--against", type=click.Choice(["transformers"]), help="Compare with this library's model of the same config, too."
)
@click.option("-o", "--output", type=UserPath(path_type=Path), help="Write the certificate to this file.")
@click.option("--check", is_flag=True, help="Measure anew what the installed certificate says, and fail if it no longer holds.")
@json_option("Print the certificate as JSON.")
def command(family: str, against: Against | None, output: Path | None, check: bool, as_json: bool) -> None:
    """Run every check of the kit on an installed FAMILY, and compare its smallest preset with another library.

    Logits, gradients, the cache, documents, files and ten optimizer steps are compared, by precision and backend. The
    certificate holds what was seen, where, and the SHA-256 of the plugin's files: a self-report, which ships beside
    the plugin's code (apr-train plugins shows it) and which --check measures again. Nothing is asked of a network.
    """
    from apr_train.family.registry import Registry

    if check and (against is not None or output is not None):
        raise click.UsageError("--check measures what the installed certificate says: leave --against and --output out.")
    found = Registry.discover().family(family)
    shipped = _shipped(found) if check else None
    from apr_train.testing.verify import (  # torch, which a certificate of other code does not need
        check_holds,
        library_of,
        verify,
    )

    made = verify(found, against=against or (library_of(shipped) if shipped is not None else None), tell=say)
    if as_json:
        emit_json(made.to_dict() if shipped is None else {"certified": shipped.to_dict(), "now": made.to_dict()})
    else:
        _print(made, shipped)
    if shipped is not None:
        check_holds(shipped, made)
        say("the certificate holds")
    if output is not None:
        _write(found, output, made)


def _write(family: Family, output: Path, made: Certificate) -> None:
    from apr_train.family.certificate import certificate_path, write_certificate

    write_certificate(output, made)
    say(f"written: {output}")
    place = certificate_path(family.plugin)
    if place is not None and output.resolve() != place.resolve():
        say(f"apr-train plugins looks for it at {place}")


def _shipped(family: Family) -> Certificate:
    """The certificate beside the plugin's code.

    Raises:
        PluginError: there is none, it is damaged, or it is of other code.
    """
    from apr_train.family.certificate import standing

    found = standing(family.plugin)
    if found.state == "verified" and found.certificate is not None:
        return found.certificate
    problem = {
        "none": "no certificate lies beside the plugin's code",
        "damaged": "the certificate is damaged",
        "changed": "the certificate is of another version",
    }[found.state]
    hint = f"Make one: apr-train verify {family.name} --against transformers -o FILE."
    raise family.plugin.error(problem, found=found.why, hint=hint)


def _print(made: Certificate, shipped: Certificate | None) -> None:
    checked = [item for item in made.checks if "not_checked" not in item]
    tell(f"{made.family} {made.version}, {made.label}: {len(checked)} checks of the kit are kept")
    left_out: dict[tuple[str, str], list[str]] = {}
    for item in made.checks:
        if "not_checked" in item:
            left_out.setdefault((item["check"], item["not_checked"]), []).extend(filter(None, [item.get("preset")]))
    for (check, reason), presets in left_out.items():
        tell(f"not checked: {' of '.join(filter(None, [check, ', '.join(presets)]))}: {reason}")
    sides = [("now", made)] if shipped is None else [("certified", shipped), ("now", made)]
    rows = [row for when, side in sides for row in _rows(side, "" if shipped is None else when)]
    if rows:
        columns = ("compared", *(() if shipped is None else ("when",)), "largest relative errors")
        emit_table(columns, [[cell for cell in row if cell] for row in rows])
    if shipped is not None:
        tell(_elsewhere(shipped.environment, made.environment))
    tell(f"SHA-256 of the plugin's files: {made.code}")


def _elsewhere(certified: Mapping[str, str], now: Mapping[str, str]) -> str:
    other = [f"{name} {certified.get(name)}, now {now.get(name)}" for name in now if certified.get(name) != now.get(name)]
    return f"certified elsewhere: {'; '.join(other)}" if other else "certified in the same environment"


def _rows(side: Certificate, when: str) -> list[tuple[str, str, str]]:
    parts = {**side.agreement, **{f"{precision}, training": values for precision, values in side.training.items()}}
    return [(name, when, _numbers(values)) for name, values in parts.items()]


def _numbers(values: Mapping[str, float]) -> str:
    whole = ("steps",)
    shown = (f"{name} {value:.0f}" if name in whole else f"{name} {value:.1e}" for name, value in values.items())
    return ", ".join(shown)

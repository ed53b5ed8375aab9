"""`apr-train plugins`: the installed families, and the broken ones with the reason. Imports no torch."""

from __future__ import annotations

from typing import Any

import click

from apr_train.cli.options import json_option
from apr_train.cli.output import emit_json, emit_table, tell
from apr_train.errors import AprTrainError, PluginError
from apr_train.family.certificate import standing
from apr_train.family.discovery import ENVIRONMENT
from apr_train.family.plugin import Family
from apr_train.family.registry import BrokenPlugin, Registry, broken_plugin

COLUMNS = ("family", "distribution", "version", "api", "kind", "presets", "objectives", "attention", "certificate")


@click.command("plugins")
@json_option("Print JSON, tracebacks included.")
@click.option("--tracebacks", is_flag=True, help="Show what a broken plugin itself raised.")
def command(as_json: bool, tracebacks: bool) -> None:
    """List the installed families, and broken plugins with the reason."""
    registry = Registry.discover()
    working, broken = ask_families(registry)
    if as_json:
        emit_json({"families": working, "broken": broken})
        return
    if working:
        emit_table(COLUMNS, [_row(item) for item in working])
    elif left_out := registry.left_out():
        tell(f"No family is loaded; {ENVIRONMENT} leaves out {', '.join(left_out)}.")
    else:
        tell("No family works here; install one: pip install apr-train-NAME.")
    for item in working:
        if why := item["certificate"].get("why"):
            tell(f"\ncertificate of {item['name']}: {why}")
    for fault in {fault.reason: fault for fault in broken}.values():  # a duplicate name is one fault of several plugins
        tell(f"\nbroken: {fault.reason}")
        if tracebacks and fault.traceback:
            tell(fault.traceback.rstrip())


def ask_families(registry: Registry) -> tuple[list[dict[str, Any]], list[BrokenPlugin]]:
    """Ask every family's hooks for its line of the list; a family that answers wrongly counts as broken."""
    working: list[dict[str, Any]] = []
    broken = registry.broken()
    for family in registry.families():
        try:
            working.append(family_line(family))
        except PluginError as error:
            broken.append(broken_plugin(family.plugin, error))
        except AprTrainError as error:
            preset = family.info.default_preset
            broken.append(broken_plugin(family.plugin, family.plugin.error(f"preset {preset} does not work: {error}")))
    return working, broken


def family_line(family: Family) -> dict[str, Any]:
    """A family's line of the list, as JSON-able data.

    Raises:
        AprTrainError: the family's hooks fail for its own default preset.
    """
    backends = family.attention_impl(family.build_config(preset=family.info.default_preset))
    return {
        "name": family.name,
        "distribution": family.distribution,
        "version": family.version,
        "api_version": family.info.api_version,
        "kind": family.info.kind,
        "presets": list(family.info.presets),
        "default_preset": family.info.default_preset,
        "objectives": list(family.info.objectives),
        "hf_classes": list(family.info.hf_classes),
        "gguf_architectures": list(family.info.gguf_architectures),
        "attention": [item if isinstance(item, str) else item.name for item in backends],
        "certificate": _certificate(family),
    }


def _certificate(family: Family) -> dict[str, str]:
    """What the family's certificate says of the installed code; a self-report, see `apr_train.family.certificate`."""
    found = standing(family.plugin)
    sealed = found.certificate
    said = {} if sealed is None else {"version": sealed.version, "against": sealed.against, "sha256": sealed.sha256}
    return {"state": found.state, "label": found.label, **said, **({"why": found.why} if found.why else {})}


def _row(item: dict[str, Any]) -> list[str]:
    keys = ("name", "distribution", "version", "api_version", "kind")
    lists = [", ".join(item[key]) for key in ("presets", "objectives", "attention")]
    return [*(item[key] for key in keys), *lists, item["certificate"]["label"]]

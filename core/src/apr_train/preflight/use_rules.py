"""Settings that another setting makes meaningless: `--fim-rate` without the objective fim, `--lora-alpha` without a rank."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import attrs

from apr_train import rules
from apr_train.errors import ConfigError, Finding
from apr_train.run.evaluation_names import FLAG, parse_evaluations
from apr_train.run.measures import NONE, measure_named
from apr_train.run.option import USED_WITH, Beside, flag, options_of
from apr_train.run.settings import GROUPS, Settings


def use_findings(settings: Settings, objective: str | None, *, stated: Collection[str] | None = None) -> list[Finding]:
    """What is set and would be ignored; a value that is the default counts as not set.

    Args:
        settings: of the run.
        objective: the one that is learnt; None while it is not known, and then nothing is said of what belongs to one.
        stated: at a resume, the settings that the user gave with it, the only ones to judge; None: all.
    """
    options = {item.name: (group, item) for group, cls in GROUPS.items() for item in options_of(cls)}
    values = {name: getattr(getattr(settings, group), name) for name, (group, _) in options.items()} | {"objective": objective}
    judged = [item for name, (_, item) in options.items() if stated is None or name in stated]
    found = [finding for item in judged if values[item.name] != item.default for finding in _unused(item, values)]
    return [*found, *_unmeasured(settings)]


def _unused(item: attrs.Attribute[Any], values: Mapping[str, Any]) -> Iterator[Finding]:
    beside: tuple[Beside, ...] = item.metadata[USED_WITH]
    if not beside or any(other.holds(values[other.name]) for other in beside):
        return
    if values["objective"] is None and any(other.name == "objective" for other in beside):
        return
    yield Finding(
        rule=rules.PREFLIGHT_030,
        subject=flag(item.name),
        problem="this would change nothing",
        expected=" or ".join(_wanted(other) for other in beside),
        found=" and ".join(f"{flag(other.name)} {_said(values[other.name])}" for other in beside),
        hint="Leave it out, or set what it belongs to.",
    )


def _wanted(other: Beside) -> str:
    return f"{flag(other.name)} {' or '.join(other.values)}" if other.values else f"a {flag(other.name)}"


def _said(value: Any) -> str:
    return "left out" if value in (None, ()) else str(value)


def _unmeasured(settings: Settings) -> Iterator[Finding]:
    """A best by an evaluation needs that evaluation."""
    wanted, run = measure_named(settings.run.keep_best).evaluation, settings.run
    try:
        asked = parse_evaluations(run.eval)
    except ConfigError:
        return  # EVAL-001 says so
    if run.keep_best == NONE or wanted is None or wanted in asked:
        return
    yield Finding(
        rule=rules.PREFLIGHT_030,
        subject="--keep-best",
        problem=f"{run.keep_best} is not measured, so that nothing is best by it",
        expected=f"{FLAG} {wanted}:COUNT",
        found=f"{FLAG} {_said(run.eval)}",
        hint="Ask for the evaluation, or keep the best by val_loss.",
    )

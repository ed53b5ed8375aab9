"""What model.apr says about the run that made it: inputs by hash, settings that matter, versions. No clock, no path."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import attrs

from apr_train.family.plugin import Family
from apr_train.run.identity import RunIdentity
from apr_train.run.settings import DECIDES, GROUPS, Settings

RUN_KEY = "apr_train.run"
"""The metadata key of `.apr` under which it stands, with the step."""


def origin_of(settings: Settings, identity: RunIdentity, family: Family, *, torch: str) -> dict[str, Any]:
    """The run's inputs, settings and versions as JSON-able data, equal for equal runs; `torch` is its version."""
    chosen = {group: _deciding(getattr(settings, group), cls) for group, cls in GROUPS.items()}
    versions = {"apr-train": version("apr-train"), family.distribution: family.version, "torch": torch}
    return {**attrs.asdict(identity), "settings": chosen, "versions": versions}


def _deciding(group: Any, cls: type) -> dict[str, Any]:
    """The settings that decide what is computed; not where a run was, and how closely it was watched."""
    values = {item.name: getattr(group, item.name) for item in attrs.fields(cls) if item.metadata[DECIDES]}
    return {name: value for name, value in values.items() if value is not None}

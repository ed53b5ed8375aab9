"""What model.apr says about the run that made it: inputs by hash, settings that matter, versions. No clock, no path."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import attrs
import torch

from apr_train.facade import Family
from apr_train.train.identity import Identity
from apr_train.train.option import DECIDES
from apr_train.train.settings import GROUPS, Settings


def origin_of(settings: Settings, identity: Identity, family: Family) -> dict[str, Any]:
    """JSON-able, and equal for equal runs."""
    chosen = {group: _deciding(getattr(settings, group), cls) for group, cls in GROUPS.items()}
    versions = {"apr-train": version("apr-train"), family.distribution: family.version, "torch": str(torch.__version__)}
    return {**attrs.asdict(identity), "settings": chosen, "versions": versions}


def _deciding(group: Any, cls: type) -> dict[str, Any]:
    """The settings that decide what is computed; not where a run was, and how closely it was watched."""
    values = {item.name: getattr(group, item.name) for item in attrs.fields(cls) if item.metadata[DECIDES]}
    return {name: value for name, value in values.items() if value is not None}

"""What model.apr says about the run that made it: inputs by hash, settings that matter, versions. No clock, no path."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import attrs
import torch

from apr_train.facade import Family
from apr_train.train.identity import Identity
from apr_train.train.settings import Settings

_OF_THE_PLACE = frozenset({
    "init", "tokenizer", "rope_layout", "data", "val_batches", "run", "out", "val_every", "save_every", "keep", "log_every",
    "device", "threads", "allow_cold_init", "prompt", "sample_tokens",
})  # fmt: skip
"""Settings that say where and how closely watched a run was, not what it computed."""


def origin_of(settings: Settings, identity: Identity, family: Family) -> dict[str, Any]:
    """JSON-able, and equal for equal runs."""
    groups = attrs.asdict(settings)
    chosen = {
        group: {name: value for name, value in values.items() if name not in _OF_THE_PLACE and value is not None}
        for group, values in groups.items()
    }
    versions = {"apr-train": version("apr-train"), family.distribution: family.version, "torch": str(torch.__version__)}
    return {**attrs.asdict(identity), "settings": chosen, "versions": versions}

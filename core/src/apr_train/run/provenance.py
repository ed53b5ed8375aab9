"""What model.apr says about the run that made it: inputs by hash, settings that matter, versions. No clock, no path.

And what is read back from one that a run finds in its place: how far it is, and what somebody stamped into it since.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

from apr_train.checkpoint.apr import AprReader, open_apr
from apr_train.checkpoint.apr.keys import STAMPED
from apr_train.errors import FormatError
from apr_train.family.plugin import Family
from apr_train.run.data_argument import mixture_of
from apr_train.run.identity import RunIdentity
from apr_train.run.option import DECIDES
from apr_train.run.settings import GROUPS, Settings

RUN_KEY = "apr_train.run"
"""The metadata key of `.apr` under which it stands, with the step."""


ADDED = "added_tokens"
"""Beside it, the tokens that the run added to the vocabulary: token → id."""


def origin_of(
    settings: Settings, identity: RunIdentity, family: Family, *, torch: str, added: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The run's inputs, settings and versions as JSON-able data, equal for equal runs; `torch` is its version."""
    groups = {group: _deciding(getattr(settings, group)) for group in GROUPS}
    chosen = {group: values for group, values in groups.items() if values}  # how processes share a run decides nothing
    versions = {"apr-train": version("apr-train"), family.distribution: family.version, "torch": torch}
    mixture = [_deciding(item) for item in mixture_of(settings.data)]
    return {
        **attrs.asdict(identity),
        "settings": chosen,
        **({"mixture": mixture} if mixture else {}),
        **({ADDED: dict(added)} if added else {}),
        "versions": versions,
    }


def _deciding(group: Any) -> dict[str, Any]:
    """The settings of a table, and of the tables in it, that decide what is computed; not where a run or a source was."""
    values = attrs.asdict(group, filter=lambda item, value: item.metadata[DECIDES] and value is not None)
    return dict(values)


def written_metadata(path: Path) -> Mapping[str, Any]:
    """The metadata of the model.apr that a run finds in its place; empty when there is none, or none that can be read."""
    try:
        with open_apr(path, verify=False) as checkpoint:
            return checkpoint.raw_metadata if isinstance(checkpoint, AprReader) else {}
    except FormatError:
        return {}


def step_of(metadata: Mapping[str, Any]) -> int | None:
    """The step that a model.apr was written at; None when it does not say."""
    origin = metadata.get(RUN_KEY)
    step = origin.get("step") if isinstance(origin, Mapping) else None
    return step if isinstance(step, int) else None


def added_in(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The tokens that the run of a model.apr added, as it says itself."""
    origin = metadata.get(RUN_KEY)
    added = origin.get(ADDED) if isinstance(origin, Mapping) else None
    return dict(added) if isinstance(added, Mapping) else {}


def stamp_in(path: Path, origin: Mapping[str, Any]) -> dict[str, str]:
    """What `apr-train stamp` sets, as the model.apr that is about to be replaced says it, if it is of the same run.

    The licence, the author and so on are the user's word: a run that goes on writes them again.
    """
    metadata = written_metadata(path)
    found = metadata.get(RUN_KEY)
    inputs = [item.name for item in attrs.fields(RunIdentity)]
    if not isinstance(found, Mapping) or any(found.get(name) != origin.get(name) for name in inputs):
        return {}
    return {key: metadata[key] for key in STAMPED if isinstance(metadata.get(key), str)}

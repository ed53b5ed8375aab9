"""Which plugins are installed, by entry-point metadata alone: nothing of theirs is imported here."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from importlib import metadata
from typing import Any

from attrs import evolve, field, frozen

from apr_train.errors import PluginError

FAMILIES = "apr_train.families"
WRAPPERS = "apr_train.wrappers"
ENVIRONMENT = "APR_TRAIN_PLUGINS"
"""Comma-separated distribution names; set, only these are loaded (set to nothing: none)."""


@frozen(kw_only=True)
class Source:
    """One entry point: where a family or a wrapper would be imported from."""

    group: str
    name: str
    """What `--arch` takes."""
    distribution: str
    version: str
    entry_point: metadata.EntryPoint = field(repr=False)

    @property
    def where(self) -> str:
        """`distribution version`, for messages."""
        return f"{self.distribution} {self.version}".rstrip()

    def error(self, problem: str, *, hook: str | None = None, **details: str | None) -> PluginError:
        """A PluginError that says whose fault it is."""
        place = f"{self.where} [{self.name}]" if hook is None else f"{self.where} [{self.name}], hook {hook}"
        return PluginError(
            problem,
            where=place,
            distribution=self.distribution,
            version=self.version,
            hook=hook,
            expected=details.get("expected"),
            found=details.get("found"),
            hint=details.get("hint"),
        )


@frozen(kw_only=True)
class Found:
    """What is installed: usable names, and names that more than one entry point offers."""

    sources: tuple[Source, ...]
    clashes: tuple[tuple[Source, ...], ...]
    absent: tuple[str, ...] = ()
    """Distributions that were asked for and offer nothing."""
    left_out: tuple[Source, ...] = ()
    """Installed, but not of a distribution that was asked for."""


def canonical(distribution: str) -> str:
    """A distribution's name as package tools compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def allowed_from_environment() -> list[str] | None:
    """The distributions that `APR_TRAIN_PLUGINS` names; None when it is not set."""
    value = os.environ.get(ENVIRONMENT)
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def discover(only: Collection[str] | None = None) -> Found:
    """Read the installed entry points of families and wrappers, restricted to the distributions in `only`."""
    sources = [source for group in (FAMILIES, WRAPPERS) for source in _read(group)]
    if only is None:
        return _split(sources)
    wanted = {canonical(name): name for name in only}
    offered = {canonical(source.distribution) for source in sources}
    return evolve(
        _split(source for source in sources if canonical(source.distribution) in wanted),
        absent=tuple(sorted(name for key, name in wanted.items() if key not in offered)),
        left_out=tuple(source for source in sources if canonical(source.distribution) not in wanted),
    )


def _read(group: str) -> list[Source]:
    points = metadata.entry_points(group=group)
    sources = [_source(group, point) for point in points]
    return sorted(sources, key=lambda source: (source.name, source.distribution))


def _source(group: str, point: metadata.EntryPoint) -> Source:
    # an uninstall that broke off leaves entry points without the metadata that has name and version
    owner: Any = point.dist
    return Source(
        group=group,
        name=point.name,
        distribution=getattr(owner, "name", None) or "an unknown distribution",
        version=getattr(owner, "version", None) or "",
        entry_point=point,
    )


def _split(sources: Iterable[Source]) -> Found:
    """Set aside every name that several entry points of one group offer."""
    by_name: dict[tuple[str, str], list[Source]] = defaultdict(list)
    for source in sources:
        by_name[source.group, source.name].append(source)
    return Found(
        sources=tuple(group[0] for group in by_name.values() if len(group) == 1),
        clashes=tuple(tuple(group) for group in by_name.values() if len(group) > 1),
    )

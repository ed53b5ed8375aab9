"""The installed plugins, by entry-point metadata alone: nothing of theirs is imported here."""

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
"""The entry-point group of families."""
ENVIRONMENT = "APR_TRAIN_PLUGINS"
"""Environment variable with comma-separated distribution names: when set, only these are loaded; when empty, none."""


@frozen(kw_only=True)
class InstalledPlugin:
    """One entry point of an installed distribution: a family (or a tracker) by name, its module not imported yet."""

    name: str
    """What `--arch` (or `--tracker`) takes."""
    distribution: str
    version: str
    entry_point: metadata.EntryPoint = field(repr=False)

    @property
    def where(self) -> str:
        """`distribution version`, for messages."""
        return f"{self.distribution} {self.version}".rstrip()

    def error(self, problem: str, *, hook: str | None = None, **details: str | None) -> PluginError:
        """Make a PluginError that names this plugin, and the hook if one is at fault."""
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


@frozen
class Unreadable:
    """A distribution whose entry_points.txt is damaged, and how."""

    distribution: str
    reason: str


@frozen(kw_only=True)
class Discovery:
    """Everything that is installed: usable plugins, and plugins that offer the same name."""

    plugins: tuple[InstalledPlugin, ...]
    """Each the only one of its name."""
    clashes: tuple[tuple[InstalledPlugin, ...], ...] = ()
    """Groups of plugins that offer the same name."""
    absent: tuple[str, ...] = ()
    """Distributions that were asked for and offer nothing."""
    left_out: tuple[InstalledPlugin, ...] = ()
    """Plugins that are installed, but not of a distribution that was asked for."""
    unreadable: tuple[Unreadable, ...] = ()
    """Distributions whose entry points are no entry points; what they offer, families or not, nobody can know."""


def canonical(distribution: str) -> str:
    """A distribution's name as package tools compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def allowed_from_environment() -> list[str] | None:
    """The distributions that `APR_TRAIN_PLUGINS` names; None when it is not set."""
    value = os.environ.get(ENVIRONMENT)
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def discover(only: Collection[str] | None = None) -> Discovery:
    """Read the installed entry points of families, restricted to the distributions in `only`."""
    points, unreadable = entry_points(FAMILIES)
    plugins = sorted(map(installed_plugin, points), key=lambda plugin: (plugin.name, plugin.distribution))
    if only is None:
        return evolve(_split(plugins), unreadable=unreadable)
    wanted = {canonical(name): name for name in only}
    offered = {canonical(plugin.distribution) for plugin in plugins}
    return evolve(
        _split(plugin for plugin in plugins if canonical(plugin.distribution) in wanted),
        absent=tuple(sorted(name for key, name in wanted.items() if key not in offered)),
        left_out=tuple(plugin for plugin in plugins if canonical(plugin.distribution) not in wanted),
        unreadable=unreadable,
    )


_DAMAGED = (TypeError, ValueError, OSError)
"""What importlib.metadata raises for a line without an equals sign, for bytes that are no UTF-8, for a file it cannot have."""


def entry_points(group: str) -> tuple[list[metadata.EntryPoint], tuple[Unreadable, ...]]:
    """Those of a group; one damaged file anywhere makes importlib.metadata give none, and then each is read alone."""
    try:
        return list(metadata.entry_points(group=group)), ()
    except _DAMAGED:
        pass
    points: dict[str, list[metadata.EntryPoint]] = {}
    unreadable = []
    for distribution in metadata.distributions():
        name: str = getattr(distribution, "name", None) or ""
        if name and canonical(name) in points:
            continue  # of two, the one that comes first on the path is the one that is imported
        points[canonical(name)] = []
        try:
            points[canonical(name)] = list(distribution.entry_points.select(group=group))
        except _DAMAGED as error:
            unreadable.append(Unreadable(name, str(error)))
    return [point for each in points.values() for point in each], tuple(unreadable)


def installed_plugin(point: metadata.EntryPoint) -> InstalledPlugin:
    """An entry point with the distribution that it comes from."""
    # an uninstall that broke off leaves entry points without the metadata that has name and version
    owner: Any = point.dist
    return InstalledPlugin(
        name=point.name,
        distribution=getattr(owner, "name", None) or "an unknown distribution",
        version=getattr(owner, "version", None) or "",
        entry_point=point,
    )


def _split(plugins: Iterable[InstalledPlugin]) -> Discovery:
    """Set aside every name that several entry points offer."""
    by_name: dict[str, list[InstalledPlugin]] = defaultdict(list)
    for plugin in plugins:
        by_name[plugin.name].append(plugin)
    return Discovery(
        plugins=tuple(group[0] for group in by_name.values() if len(group) == 1),
        clashes=tuple(tuple(group) for group in by_name.values() if len(group) > 1),
    )

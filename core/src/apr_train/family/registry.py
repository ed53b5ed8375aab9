"""The registry of installed families: found by metadata, imported one by one when asked for, faults kept apart."""

from __future__ import annotations

import traceback
from collections.abc import Collection
from typing import Self

from attrs import frozen

from apr_train.checkpoint.header import Header
from apr_train.errors import PluginError
from apr_train.family.discovery import ENVIRONMENT, FAMILIES, Discovery, InstalledPlugin, allowed_from_environment, discover
from apr_train.family.plugin import Family
from apr_train.family.plugin_module import load_family
from apr_train.suggest import did_you_mean, nearest


@frozen(kw_only=True)
class BrokenPlugin:
    """A plugin that cannot be used, and why."""

    name: str
    group: str = FAMILIES
    """The entry-point group."""
    distribution: str
    version: str
    hook: str | None
    """The hook that is at fault, if it is one."""
    reason: str
    traceback: str
    """What the plugin itself raised, or empty when it raised nothing."""


def broken_plugin(plugin: InstalledPlugin, error: PluginError) -> BrokenPlugin:
    """Describe a failed plugin for `Registry.broken` and `apr-train plugins`."""
    cause = error.__cause__
    return BrokenPlugin(
        name=plugin.name,
        distribution=error.distribution or plugin.distribution,
        version=error.version or plugin.version,
        hook=error.hook,
        reason=str(error),
        traceback="" if cause is None else "".join(traceback.format_exception(cause)),
    )


class Registry:
    """The installed families; a value, not a global: make as many as you like.

    Nothing is imported before it is asked for, and each module once per registry.
    """

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._loaded: dict[str, Family | PluginError] = {}

    @classmethod
    def discover(cls, only: Collection[str] | None = None) -> Self:
        """Read the entry points' metadata; import nothing.

        Args:
            only: distribution names to restrict families to; by default what the environment variable
                `APR_TRAIN_PLUGINS` names, or everything when that is not set.
        """
        return cls(discover(allowed_from_environment() if only is None else only))

    def names(self) -> list[str]:
        """Names that `--arch` could take, working or not, without importing anything."""
        clashes = {clash[0].name for clash in self._discovery.clashes}
        return sorted({plugin.name for plugin in self._discovery.plugins} | clashes)

    def family(self, name: str) -> Family:
        """The family of that name; only its module is imported.

        Raises:
            PluginError: it is broken (with the reason), its name is offered twice, or no plugin offers it (with what is
                installed, what is broken, and the closest name).
        """
        for clash in self._discovery.clashes:
            if clash[0].name == name:
                raise _clash_error(clash)
        plugin = next((plugin for plugin in self._discovery.plugins if plugin.name == name), None)
        if plugin is None:
            raise self._unknown(name)
        loaded = self._load(plugin)
        if isinstance(loaded, PluginError):
            raise loaded
        return loaded

    def families(self) -> list[Family]:
        """All families that work, by name; imports every one."""
        loaded = [self._load(plugin) for plugin in self._discovery.plugins]
        return sorted((item for item in loaded if isinstance(item, Family)), key=lambda family: family.name)

    def broken(self) -> list[BrokenPlugin]:
        """All families that cannot be used, by name; imports every one."""
        faults = [broken_plugin(plugin, _clash_error(clash)) for clash in self._discovery.clashes for plugin in clash]
        for plugin in self._discovery.plugins:
            loaded = self._load(plugin)
            if isinstance(loaded, PluginError):
                faults.append(broken_plugin(plugin, loaded))
        return sorted(faults, key=lambda fault: (fault.name, fault.distribution)) + self._absent() + self._unreadable()

    def left_out(self) -> list[str]:
        """Families that are installed and not loaded, because other distributions were asked for."""
        return sorted({plugin.name for plugin in self._discovery.left_out})

    def claimants(self, header: Header) -> list[Family]:
        """The working families that say a checkpoint is theirs: none, one, or several (then the user says which)."""
        return [family for family in self.families() if family.info.claims(header)]

    def _load(self, plugin: InstalledPlugin) -> Family | PluginError:
        if plugin.name not in self._loaded:
            try:
                self._loaded[plugin.name] = load_family(plugin)
            except PluginError as error:
                self._loaded[plugin.name] = error
        return self._loaded[plugin.name]

    def _absent(self) -> list[BrokenPlugin]:
        return [
            BrokenPlugin(name="–", distribution=name, version="–", hook=None, reason=self._why(name), traceback="")
            for name in self._discovery.absent
        ]

    def _unreadable(self) -> list[BrokenPlugin]:
        return [
            BrokenPlugin(
                name="–",
                distribution=item.distribution,
                version="–",
                hook=None,
                reason=f"{item.distribution}: its entry_points.txt cannot be read ({item.reason}). Install it again",
                traceback="",
            )
            for item in self._discovery.unreadable
        ]

    def _why(self, absent: str) -> str:
        known = {plugin.distribution for plugin in (*self._discovery.plugins, *self._discovery.left_out)}
        what = f"{ENVIRONMENT}: no installed distribution of this name offers a family, found {absent}"
        return f"{what}. {did_you_mean(absent, known)}"

    def _unknown(self, name: str) -> PluginError:
        installed = ", ".join(family.name for family in self.families()) or "none"
        faults = "; ".join(f"{fault.name} ({fault.reason})" for fault in self.broken())
        return PluginError(
            "no installed plugin offers this family",
            where="--arch",
            expected=f"one of the installed families: {installed}" + (f" (broken: {faults})" if faults else ""),
            found=name,
            hint=self._elsewhere(name) or nearest(name, self.names()),
        )

    def _elsewhere(self, name: str) -> str | None:
        owners = [plugin.where for plugin in self._discovery.left_out if plugin.name == name]
        if not owners:
            return None
        return f"{' and '.join(owners)} offers it, but is not among the distributions to load: see {ENVIRONMENT}."


def _clash_error(clash: tuple[InstalledPlugin, ...]) -> PluginError:
    return PluginError(
        f"several distributions offer {clash[0].name}, so none is used",
        where=clash[0].name,
        found=" and ".join(plugin.where for plugin in clash),
        hint=f"Uninstall all but one, or name one in {ENVIRONMENT}.",
    )

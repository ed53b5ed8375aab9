"""The installed families as a value: found by metadata, imported one by one when asked for, faults kept apart."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Collection
from functools import cached_property
from types import ModuleType
from typing import Self

from attrs import frozen

from apr_train.checkpoint.header import Header
from apr_train.errors import PluginError
from apr_train.family.discovery import ENVIRONMENT, FAMILIES, WRAPPERS, Found, Source, allowed_from_environment, discover
from apr_train.family.plugin import Family
from apr_train.family.plugin_checks import (
    check_family,
    check_hooks,
    check_wrapper,
    examination,
    import_module,
    make_manager,
    read_card,
)
from apr_train.suggest import did_you_mean, nearest

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class BrokenPlugin:
    """A plugin that cannot be used, and why."""

    name: str
    group: str
    distribution: str
    version: str
    hook: str | None
    reason: str
    traceback: str
    """What the plugin itself raised, or empty when it raised nothing."""


def broken_plugin(source: Source, error: PluginError) -> BrokenPlugin:
    """What `Registry.broken` and `apr-train plugins` say about a failure."""
    cause = error.__cause__
    return BrokenPlugin(
        name=source.name,
        group=source.group,
        distribution=error.distribution or source.distribution,
        version=error.version or source.version,
        hook=error.hook,
        reason=str(error),
        traceback="" if cause is None else "".join(traceback.format_exception(cause)),
    )


class Registry:
    """The families and wrappers that are installed; a value, not a global: make as many as you like.

    Nothing is imported before it is asked for, and each module once per registry.
    """

    def __init__(self, found: Found) -> None:
        self._found = found
        self._loaded: dict[str, Family | PluginError] = {}

    @classmethod
    def discover(cls, only: Collection[str] | None = None) -> Self:
        """Read the entry points' metadata; import nothing.

        Args:
            only: distribution names to restrict families and wrappers to; by default what the environment variable
                `APR_TRAIN_PLUGINS` names, or everything when that is not set.
        """
        return cls(discover(allowed_from_environment() if only is None else only))

    def names(self) -> list[str]:
        """Names that `--arch` could take, working or not, without importing anything."""
        clashes = {group[0].name for group in self._found.clashes if group[0].group == FAMILIES}
        return sorted({source.name for source in self._sources(FAMILIES)} | clashes)

    def family(self, name: str) -> Family:
        """The family of that name; only its module (and the wrappers') is imported.

        Raises:
            PluginError: it is broken (with the reason), its name is offered twice, or no plugin offers it (with what is
                installed, what is broken, and the closest name).
        """
        for clash in self._found.clashes:
            if clash[0].group == FAMILIES and clash[0].name == name:
                raise _clash_error(clash)
        source = next((source for source in self._sources(FAMILIES) if source.name == name), None)
        if source is None:
            raise self._unknown(name)
        loaded = self._load(source)
        if isinstance(loaded, PluginError):
            raise loaded
        return loaded

    def families(self) -> list[Family]:
        """All families that work, by name; imports every one."""
        loaded = [self._load(source) for source in self._sources(FAMILIES)]
        return sorted((item for item in loaded if isinstance(item, Family)), key=lambda family: family.name)

    def broken(self) -> list[BrokenPlugin]:
        """All families and wrappers that cannot be used, by name; imports every one."""
        faults = [broken_plugin(source, _clash_error(clash)) for clash in self._found.clashes for source in clash]
        for source in self._sources(FAMILIES):
            loaded = self._load(source)
            if isinstance(loaded, PluginError):
                faults.append(broken_plugin(source, loaded))
        faults += [broken_plugin(source, error) for source, error in self._wrappers[1]]
        return sorted(faults, key=lambda fault: (fault.name, fault.distribution)) + self._absent()

    def left_out(self) -> list[str]:
        """Families that are installed and not loaded, because other distributions were asked for."""
        return sorted({source.name for source in self._found.left_out if source.group == FAMILIES})

    def claimants(self, header: Header) -> list[Family]:
        """The working families that say a checkpoint is theirs: none, one, or several (then the user says which)."""
        return [family for family in self.families() if family.info.claims(header)]

    def _sources(self, group: str) -> list[Source]:
        return [source for source in self._found.sources if source.group == group]

    def _load(self, source: Source) -> Family | PluginError:
        if source.name not in self._loaded:
            try:
                self._loaded[source.name] = self._import(source)
            except PluginError as error:
                self._loaded[source.name] = error
        return self._loaded[source.name]

    def _import(self, source: Source) -> Family:
        module = import_module(source)
        wrappers = self._wrappers[0]
        owners = {module.__name__: source} | {wrapper.__name__: owner for owner, wrapper in wrappers}
        with examination(source):
            info = read_card(source, module)
            check_hooks(source, module)
            check_family(source, module)
            return Family(info=info, source=source, manager=make_manager((source, module), wrappers), owners=owners)

    @cached_property
    def _wrappers(self) -> tuple[list[tuple[Source, ModuleType]], list[tuple[Source, PluginError]]]:
        """Working wrapper modules, and broken ones: those are left out with a warning, for they change no result."""
        working: list[tuple[Source, ModuleType]] = []
        broken: list[tuple[Source, PluginError]] = []
        for source in self._sources(WRAPPERS):
            try:
                working.append((source, _import_wrapper(source)))
            except PluginError as error:
                logger.warning("wrapper left out: %s", error)
                broken.append((source, error))
        return working, broken

    def _absent(self) -> list[BrokenPlugin]:
        return [
            BrokenPlugin(
                name="–", group=FAMILIES, distribution=name, version="–", hook=None, reason=self._why(name), traceback=""
            )
            for name in self._found.absent
        ]

    def _why(self, absent: str) -> str:
        known = {source.distribution for source in (*self._found.sources, *self._found.left_out)}
        what = f"{ENVIRONMENT}: no installed distribution of this name offers a family or a wrapper, found {absent}"
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
        owners = [source.where for source in self._found.left_out if (source.group, source.name) == (FAMILIES, name)]
        if not owners:
            return None
        return f"{' and '.join(owners)} offers it, but is not among the distributions to load: see {ENVIRONMENT}."


def _import_wrapper(source: Source) -> ModuleType:
    module = import_module(source)
    with examination(source):
        check_hooks(source, module)
        check_wrapper(source, module)
        make_manager((source, module), [])  # what pluggy itself refuses must not come up beside a family
    return module


def _clash_error(clash: tuple[Source, ...]) -> PluginError:
    return PluginError(
        f"several distributions offer {clash[0].name}, so none is used",
        where=clash[0].name,
        found=" and ".join(source.where for source in clash),
        hint=f"Uninstall all but one, or name one in {ENVIRONMENT}.",
    )

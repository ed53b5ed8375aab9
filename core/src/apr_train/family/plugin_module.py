"""A plugin's module: imported, its data card and hooks checked against the contract, and made a `Family`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pluggy
from pluggy import HookImpl

from apr_train.errors import PluginError, text_of
from apr_train.family import hooks
from apr_train.family.card import API_VERSION, FamilyInfo
from apr_train.family.discovery import InstalledPlugin
from apr_train.family.its_output import as_guest
from apr_train.family.plugin import Family, HookCallLog
from apr_train.suggest import did_you_mean

logger = logging.getLogger(__name__)


def load_family(plugin: InstalledPlugin) -> Family:
    """Import an installed plugin and check everything that the contract demands of its module.

    Raises:
        PluginError: the import fails, the data card is wrong, or a hook is unknown, missing or of wrong arguments.
    """
    module = import_named(plugin)
    if not isinstance(module, ModuleType):
        raise plugin.error("the entry point does not name a module", found=plugin.entry_point.value)
    with examination(plugin):
        info = _read_card(plugin, module)
        return Family(info=info, plugin=plugin, manager=make_manager(plugin, module, hooks))


def import_named(plugin: InstalledPlugin) -> Any:
    """Import what an entry point names.

    Raises:
        PluginError: if the import fails in any way, `SystemExit` included; the cause is kept.
    """
    try:
        with as_guest():
            return plugin.entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an extension module's panic (PyO3's, say) is no Exception either
        logger.debug("%s [%s]", plugin.where, plugin.name, exc_info=error)
        raise plugin.error(f"the import of {plugin.entry_point.value} failed: {told(error)}") from error


def told(error: BaseException) -> str:
    """What a plugin raised, in a sentence."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({text_of(error.code)})"
    return f"{type(error).__name__}: {text_of(error)}"


@contextmanager
def examination(plugin: InstalledPlugin) -> Iterator[None]:
    """Blame a plugin for what its module raises while it is looked at: `__getattr__` and `__dir__` are code too.

    Raises:
        PluginError: what the checks found, as it is; anything else as its cause.
    """
    try:
        with as_guest():
            yield
    except PluginError:
        raise
    except Exception as error:
        logger.debug("%s [%s]", plugin.where, plugin.name, exc_info=error)
        raise plugin.error(f"the module cannot be examined: {told(error)}") from error


def _read_card(plugin: InstalledPlugin, module: ModuleType) -> FamilyInfo:
    """Take and check the module's `FAMILY`.

    Raises:
        PluginError: it is missing, of another type, for another API, or of another name than the entry point.
    """
    card = getattr(module, "FAMILY", None)
    if card is None:
        raise plugin.error(f"{module.__name__} has no FAMILY", expected="FAMILY = FamilyInfo(…)")
    version = str(getattr(card, "api_version", None) or "none")
    if version.split(".")[0] != API_VERSION.split(".")[0]:
        raise plugin.error(
            f"written for another version of the hook contract: api_version {version}, this core speaks {API_VERSION}",
            hint="Install versions of the plugin and of apr-train that belong together.",
        )
    if not isinstance(card, FamilyInfo):
        raise plugin.error("FAMILY is of the wrong type", expected="apr_train.family.FamilyInfo", found=type(card).__name__)
    if card.name != plugin.name:
        raise plugin.error("FAMILY.name differs from the entry point's name", expected=plugin.name, found=card.name)
    return card


def _hook_implementations(answers: object, project: str) -> dict[str, HookImpl]:
    """The functions of a module, or the methods of an object, that are marked with `hookimpl`, by the hook they mean."""
    scan = pluggy.PluginManager(project)
    scan.register(answers)
    callers = scan.get_hookcallers(answers) or []
    return {caller.name: implementation for caller in callers for implementation in caller.get_hookimpls()}


def spec_arguments(contract: Any = hooks) -> dict[str, tuple[str, ...]]:
    """Hook name → the arguments that its specification has, in the module of a contract."""
    manager = pluggy.PluginManager(contract.PROJECT)
    manager.add_hookspecs(contract)
    specs = {name: getattr(manager.hook, name).spec for name in vars(manager.hook)}
    return {name: tuple(spec.argnames) for name, spec in specs.items() if spec is not None}


def _check_hooks(plugin: InstalledPlugin, answers: object, contract: Any) -> None:
    """Refuse unknown hooks, pluggy's wrappers, wrong arguments, a hook without its mark, and a mandatory one left out.

    Raises:
        PluginError: naming the hook, and the closest name that exists.
    """
    known, implementations = spec_arguments(contract), _hook_implementations(answers, contract.PROJECT)
    for name, implementation in implementations.items():
        if name in known:
            _check_implementation(plugin, name, implementation, known[name])
        elif not implementation.optionalhook:
            raise plugin.error("there is no such hook", hook=name, hint=did_you_mean(name, known))
    for name in known:
        if name not in implementations and _is_own_function(getattr(answers, name, None)):
            problem = "a function has the hook's name and is not marked with @hookimpl: it would never be called"
            raise plugin.error(problem, hook=name, hint="Mark it, or give it another name.")
    for name in contract.MANDATORY:
        if name not in implementations:
            raise plugin.error("a mandatory hook is not implemented", hook=name)


def _is_own_function(value: object) -> bool:
    """Whether an attribute is code of the plugin's; the core has functions of hooks' names that a plugin may use."""
    return callable(value) and getattr(value, "__module__", "").split(".")[0] != __name__.split(".")[0]


def _check_implementation(plugin: InstalledPlugin, hook: str, implementation: HookImpl, known: tuple[str, ...]) -> None:
    if implementation.wrapper or implementation.hookwrapper:
        problem = "marked as a wrapper, but a plugin answers each hook itself"
        raise plugin.error(problem, hook=hook, expected="@hookimpl on a function that returns its answer")
    strange = [name for name in implementation.argnames if name not in known]
    if strange:
        raise plugin.error(
            f"unknown argument {', '.join(strange)}", hook=hook, expected=f"arguments among ({', '.join(known)})"
        )
    defaulted = [name for name in implementation.kwargnames if name in known]
    if defaulted:
        # pluggy passes nothing to an argument with a default: the hook would silently never see the value
        raise plugin.error(f"argument {', '.join(defaulted)} has a default", hook=hook, expected="no defaults in a hook")


def make_manager(plugin: InstalledPlugin, answers: object, contract: Any) -> pluggy.PluginManager:
    """A plugin manager with this one plugin, whose hooks are checked; pluggy itself has the last word.

    Args:
        plugin: who is to blame.
        answers: the module, or the object, with the implementations.
        contract: the module of the specifications, with `PROJECT` and `MANDATORY`.

    Raises:
        PluginError: a hook is unknown, missing or of wrong arguments; or with pluggy's own message.
    """
    _check_hooks(plugin, answers, contract)
    manager = pluggy.PluginManager(contract.PROJECT)
    manager.add_hookspecs(contract)
    try:
        manager.register(answers, name=f"{plugin.entry_point.group}:{plugin.name}")
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise plugin.error(f"pluggy refuses it: {' '.join(str(error).split())}") from error
    log = HookCallLog(plugin)
    manager.add_hookcall_monitoring(log.before, log.after)
    return manager

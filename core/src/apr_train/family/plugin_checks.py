"""Check a plugin module before it is used, and name every fault: data card, hook names, arguments."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pluggy
from pluggy import HookImpl

from apr_train.errors import PluginError
from apr_train.family import hooks
from apr_train.family.card import API_VERSION, FamilyInfo
from apr_train.family.discovery import Source
from apr_train.suggest import did_you_mean

logger = logging.getLogger(__name__)

MANDATORY = ("build_config", "map_tensor_names", "validate_family", "attention_impl")


def import_module(source: Source) -> ModuleType:
    """Import what an entry point names.

    Raises:
        PluginError: if the import fails in any way, `SystemExit` included; the cause is kept.
    """
    try:
        module = source.entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an extension module's panic (PyO3's, say) is no Exception either
        logger.debug("%s [%s]", source.where, source.name, exc_info=error)
        raise source.error(f"the import of {source.entry_point.value} failed: {_told(error)}") from error
    if not isinstance(module, ModuleType):
        raise source.error("the entry point does not name a module", found=source.entry_point.value)
    return module


def _told(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return f"{type(error).__name__}: {error}"


@contextmanager
def examination(source: Source) -> Iterator[None]:
    """Blame a plugin for what its module raises while it is looked at: `__getattr__` and `__dir__` are code too.

    Raises:
        PluginError: what the checks found, as it is; anything else as its cause.
    """
    try:
        yield
    except PluginError:
        raise
    except Exception as error:
        logger.debug("%s [%s]", source.where, source.name, exc_info=error)
        raise source.error(f"the module cannot be examined: {_told(error)}") from error


def read_card(source: Source, module: ModuleType) -> FamilyInfo:
    """Take and check the module's `FAMILY`.

    Raises:
        PluginError: it is missing, of another type, for another API, or of another name than the entry point.
    """
    card = getattr(module, "FAMILY", None)
    if card is None:
        raise source.error(f"{module.__name__} has no FAMILY", expected="FAMILY = FamilyInfo(…)")
    version = str(getattr(card, "api_version", None) or "none")
    if version.split(".")[0] != API_VERSION.split(".")[0]:
        raise source.error(
            f"written for another version of the hook contract: api_version {version}, this core speaks {API_VERSION}",
            hint="Install versions of the plugin and of apr-train that belong together.",
        )
    if not isinstance(card, FamilyInfo):
        raise source.error(
            "FAMILY is of the wrong type", expected="apr_train.family.card.FamilyInfo", found=type(card).__name__
        )
    if card.name != source.name:
        raise source.error("FAMILY.name differs from the entry point's name", expected=source.name, found=card.name)
    return card


def hook_implementations(module: ModuleType) -> dict[str, HookImpl]:
    """The functions of a module that are marked with `hookimpl`, by the hook they mean."""
    scan = pluggy.PluginManager(hooks.PROJECT)
    scan.register(module)
    callers = scan.get_hookcallers(module) or []
    return {caller.name: implementation for caller in callers for implementation in caller.get_hookimpls()}


def spec_arguments() -> dict[str, tuple[str, ...]]:
    """Hook name → the arguments that its specification has."""
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    specs = {name: getattr(manager.hook, name).spec for name in vars(manager.hook)}
    return {name: tuple(spec.argnames) for name, spec in specs.items() if spec is not None}


def check_hooks(source: Source, module: ModuleType) -> None:
    """Refuse unknown hooks and wrong arguments, in families and wrappers alike.

    Raises:
        PluginError: naming the hook, and the closest name that exists.
    """
    known = spec_arguments()
    for name, implementation in hook_implementations(module).items():
        if name in known:
            _check_arguments(source, name, implementation, known[name])
        elif not implementation.optionalhook:
            raise source.error("there is no such hook", hook=name, hint=did_you_mean(name, known))


def _check_arguments(source: Source, hook: str, implementation: HookImpl, known: tuple[str, ...]) -> None:
    strange = [name for name in implementation.argnames if name not in known]
    if strange:
        raise source.error(
            f"unknown argument {', '.join(strange)}", hook=hook, expected=f"arguments among ({', '.join(known)})"
        )
    defaulted = [name for name in implementation.kwargnames if name in known]
    if defaulted:
        # pluggy passes nothing to an argument with a default: the hook would silently never see the value
        raise source.error(f"argument {', '.join(defaulted)} has a default", hook=hook, expected="no defaults in a hook")


def check_family(source: Source, module: ModuleType) -> None:
    """Refuse a family that leaves a mandatory hook out.

    Raises:
        PluginError: naming the hook, and a function of that name that lacks its mark.
    """
    implementations = hook_implementations(module)
    for name in MANDATORY:
        if name in implementations and not implementations[name].wrapper:
            continue
        hint = f"{name} is there, but not marked with @hookimpl." if callable(getattr(module, name, None)) else None
        raise source.error("a mandatory hook is not implemented", hook=name, hint=hint)


def check_wrapper(source: Source, module: ModuleType) -> None:
    """Refuse plain implementations in a wrapper: they would override a family's answer without a word.

    Raises:
        PluginError: naming the hook.
    """
    for name, implementation in hook_implementations(module).items():
        if not implementation.wrapper:
            raise source.error(
                "a wrapper plugin has a plain implementation, which would override the family's",
                hook=name,
                expected="@hookimpl(wrapper=True) around a function that yields once",
            )


def make_manager(plugin: tuple[Source, ModuleType], wrappers: list[tuple[Source, ModuleType]]) -> pluggy.PluginManager:
    """A plugin manager with one plugin and all wrappers: pluggy itself has the last word on each.

    Raises:
        PluginError: with pluggy's own message.
    """
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    for source, module in (plugin, *wrappers):
        _register(manager, source, module)
    return manager


def _register(manager: pluggy.PluginManager, source: Source, module: ModuleType) -> None:
    """Register one module under its group and name.

    Raises:
        PluginError: with pluggy's own message.
    """
    try:
        manager.register(module, name=f"{source.group}:{source.name}")
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise source.error(f"pluggy refuses it: {' '.join(str(error).split())}") from error

"""Trackers: found by entry points like families, two of them built in, and told of a run; none of them can stop it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from typing import TYPE_CHECKING, Any, Self

from attrs import field, frozen

from apr_train import rules
from apr_train.errors import Finding, PluginError
from apr_train.family.discovery import (
    ENVIRONMENT,
    InstalledPlugin,
    allowed_from_environment,
    canonical,
    entry_points,
    installed_plugin,
)
from apr_train.family.its_output import same_folder
from apr_train.family.plugin_module import examination, import_named, make_manager, told
from apr_train.run import events
from apr_train.run.events import RunEnd, RunStart, Say
from apr_train.run.metrics import Metrics
from apr_train.suggest import did_you_mean

if TYPE_CHECKING:
    import pluggy

GROUP = "apr_train.trackers"
"""The entry-point group of trackers."""
FLAG = "--tracker"
_CORE = "apr-train"
logger = logging.getLogger(__name__)


@frozen
class BuiltIn:
    """A tracker of the core: its class, and the package that only the extra of the same name brings."""

    made_by: str
    package: str


BUILT_IN: Mapping[str, BuiltIn] = {
    "tensorboard": BuiltIn("apr_train.training.trackers.tensorboard:TensorBoard", "tensorboard"),
    "wandb": BuiltIn("apr_train.training.trackers.wandb:WeightsAndBiases", "wandb"),
}


@frozen(kw_only=True, eq=False)
class Tracker:
    """A tracker that was made for one run, its hooks checked."""

    name: str
    manager: pluggy.PluginManager = field(repr=False)
    """Has this tracker, and no other: one that fails keeps no other from being told."""


def tracker_names() -> list[str]:
    """What `--tracker` could take; nothing is imported."""
    return sorted({plugin.name for plugin in _installed()})


def make_tracker(name: str) -> Tracker:
    """Import the tracker of that name, and make it.

    Raises:
        PluginError: TRACKER-001, no installed distribution offers it, or two do, or it is broken.
        PluginError: TRACKER-002, its package is not installed.
    """
    try:
        return _made(_named(name))
    except PluginError as error:
        raise error.amend(rule=error.finding.rule or rules.TRACKER_001) from error.__cause__


def tracker_findings(names: Sequence[str]) -> list[Finding]:
    """What is wrong with the trackers that a run is to tell, all at once."""
    findings = []
    for name in dict.fromkeys(names):
        try:
            make_tracker(name)
        except PluginError as error:
            findings.append(error.finding)
    return findings


def _installed() -> list[InstalledPlugin]:
    """The built-in trackers, and those of the installed distributions that are to be loaded."""
    own = [
        InstalledPlugin(
            name=name,
            distribution=_CORE,
            version="",
            entry_point=metadata.EntryPoint(name=name, value=item.made_by, group=GROUP),
        )
        for name, item in BUILT_IN.items()
    ]
    allowed = allowed_from_environment()
    wanted = None if allowed is None else {canonical(item) for item in allowed}
    others = [installed_plugin(point) for point in entry_points(GROUP)[0]]
    return own + [plugin for plugin in others if wanted is None or canonical(plugin.distribution) in wanted]


def _named(name: str) -> InstalledPlugin:
    found = [plugin for plugin in _installed() if plugin.name == name]
    if not found:
        only = "" if allowed_from_environment() is None else f" Only the distributions in {ENVIRONMENT} are loaded."
        hint = did_you_mean(name, tracker_names()) + only
        raise PluginError("no installed distribution offers this tracker", where=FLAG, found=name, hint=hint)
    if len(found) > 1:
        owners = " and ".join(plugin.where for plugin in found)
        problem = f"several distributions offer {name}, so none is used"
        raise PluginError(problem, where=FLAG, found=owners, hint="Uninstall all but one.")
    return found[0]


def _made(plugin: InstalledPlugin) -> Tracker:
    if (own := BUILT_IN.get(plugin.name)) is not None and util.find_spec(own.package) is None:
        hint = f"pip install '{_CORE}[{plugin.name}]'"
        problem = f"the package {own.package} is not installed"
        raise PluginError(problem, where=f"{FLAG} {plugin.name}", hint=hint).amend(rule=rules.TRACKER_002)
    make = import_named(plugin)
    if not callable(make):
        raise plugin.error("the entry point does not name a class", found=plugin.entry_point.value)
    with examination(plugin):
        made = make()
        return Tracker(name=plugin.name, manager=make_manager(plugin, made, events))


class Trackers:
    """The trackers of one run, told from its start until its result is written.

    One that raises is told of once, and of nothing more but the end; the run goes on, and so do the others. A run waits for
    each: a slow one makes it slow.
    """

    def __init__(self, trackers: Sequence[Tracker] = (), say: Say = logger.warning) -> None:
        self._trackers, self._say = tuple(trackers), say
        self._failed: set[str] = set()

    @classmethod
    def named(cls, names: Sequence[str], say: Say) -> Self:
        """Make those of these names, each once.

        Raises:
            PluginError: as `make_tracker`.
        """
        return cls([make_tracker(name) for name in dict.fromkeys(names)], say)

    def start(self, told_to: Callable[[str], RunStart]) -> None:
        """Tell that the run begins; `told_to` gives what the tracker of a name is told."""
        for tracker in self._trackers:
            self._call(tracker, "run_started", run=told_to(tracker.name))

    def line(self, line: Metrics) -> None:
        """Tell of a step, and of the validation in it."""
        for tracker in self._trackers:
            if line.step and line.loss is not None:
                self._call(tracker, "step_done", line=line)
            if line.val_loss is not None:
                self._call(tracker, "validated", line=line)

    def end(self, end: RunEnd) -> None:
        """Tell that the run is over; a tracker that failed is told, too, and what it raises then is only logged."""
        for tracker in self._trackers:
            self._call(tracker, "run_ended", always=True, end=end)

    def _call(self, tracker: Tracker, hook: str, *, always: bool = False, **arguments: Any) -> None:
        if tracker.name in self._failed and not always:
            return
        try:
            with same_folder():  # a run's paths are relative
                getattr(tracker.manager.hook, hook)(**arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit, and an extension module's panic, are no Exceptions
            logger.debug("tracker %s, hook %s", tracker.name, hook, exc_info=error)
            if tracker.name not in self._failed:
                self._failed.add(tracker.name)
                self._say(f"warning: tracker {tracker.name} failed in {hook} ({told(error)}): the run goes on without it")

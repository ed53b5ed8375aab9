"""An installed family as the core calls it: each call goes to the plugin's hook, is logged, and its answer type-checked."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import field, frozen

from apr_train import rules
from apr_train.checkpoint.header import Header
from apr_train.errors import AprTrainError, ConfigError, Finding, NameMapError, PluginError, text_of
from apr_train.family.card import FamilyInfo, Layout
from apr_train.family.config import ModelConfig
from apr_train.family.discovery import InstalledPlugin
from apr_train.family.its_output import as_guest
from apr_train.family.name_map import NameMap
from apr_train.suggest import nearest

if TYPE_CHECKING:
    import pluggy
    from torch import nn

    from apr_train.model.attention import AttentionBackend

T = TypeVar("T")
ATTENTION = ("xformers", "sdpa", "eager")
"""The attention backends of a family that does not say: the fastest first."""
logger = logging.getLogger(__name__)


@frozen(eq=False, kw_only=True)
class Family:
    """An installed family, imported and checked; make it with `Registry.family`.

    Every method raises `PluginError` (naming distribution, version and hook, the original exception as its cause)
    when the plugin fails or answers with a wrong type, and passes other `AprTrainError`s on as they are.
    """

    info: FamilyInfo
    plugin: InstalledPlugin
    manager: pluggy.PluginManager = field(repr=False)
    """Has the family's module, and no other."""

    @property
    def name(self) -> str:
        """What `--arch` takes."""
        return self.info.name

    @property
    def distribution(self) -> str:
        """The distribution that the family comes from."""
        return self.plugin.distribution

    @property
    def version(self) -> str:
        """That distribution's version."""
        return self.plugin.version

    def build_config(self, preset: str | None = None, header: Header | None = None) -> ModelConfig:
        """Make a config from a preset's name or from a header, exactly one of them.

        Raises:
            ConfigError: an unknown preset (the message lists the family's), or fields that the header lacks.
            PluginError: see the class.
        """
        if (preset is None) == (header is None):
            raise ConfigError("exactly one of preset and header makes a config", where=self.name)
        if preset is not None and preset not in self.info.presets:
            raise ConfigError(
                f"{self.name} has no such preset",
                where="--preset",
                expected=f"one of {', '.join(self.info.presets)}",
                found=preset,
                hint=nearest(preset, self.info.presets),
            )
        answer = self._call("build_config", preset=preset, header=header)
        return self._typed("build_config", answer, ModelConfig)

    def map_tensor_names(self, config: ModelConfig, layout: Layout) -> NameMap:
        """The name map of this config for one spelling of checkpoint.

        Raises:
            NameMapError: rows in adjacent pairs, of a family whose card says that no converter permutes them.
        """
        if self.info.never_permuted and layout.rope_rows == "adjacent":
            raise NameMapError(
                f"a {self.name} file never has its rows of q and k in adjacent pairs",
                field="rope_rows",
                rule=rules.PREFLIGHT_008,
                expected="split-half",
                found=layout.rope_rows,
                hint="No converter permutes this architecture's rows; leave --rope-layout out.",
            )
        return self._typed("map_tensor_names", self._call("map_tensor_names", config=config, layout=layout), NameMap)

    def validate_family(self, header: Header, objective: str) -> list[Finding]:
        """The family's own findings about a checkpoint that is its; none of a family that does not answer the hook."""
        if not self._answers("validate_family"):
            return []
        answer = self._call("validate_family", header=header, objective=objective)
        return [self._typed("validate_family", item, Finding) for item in self._sequence("validate_family", answer)]

    def attention_impl(self, config: ModelConfig) -> list[str | AttentionBackend]:
        """Attention backends by name, or as objects of the family's own, most wanted first; `ATTENTION` unless it says."""
        if not self._answers("attention_impl"):
            return list(ATTENTION)
        answer = self._sequence("attention_impl", self._call("attention_impl", config=config))
        wrong = [item for item in answer if not _is_backend(item)]
        if wrong or not answer:
            found = _shown(wrong[0]) if wrong else "an empty list"
            raise self._wrong("attention_impl", "at least one name or attention backend", found)
        return list(answer)

    def build_model(self, config: ModelConfig, attention: AttentionBackend) -> nn.Module | None:
        """The family's own module, or None: then the core assembles it from the config. Imports torch."""
        from torch import nn

        answer = self._call("build_model", config=config, attention=attention)
        return None if answer is None else self._typed("build_model", answer, nn.Module)

    def _answers(self, hook: str) -> bool:
        return bool(getattr(self.manager.hook, hook).get_hookimpls())

    def _call(self, hook: str, **arguments: Any) -> Any:
        try:
            with as_guest():
                return getattr(self.manager.hook, hook)(**arguments)
        except (AprTrainError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit, and the panic of an extension module
            logger.debug("%s [%s], hook %s", self.plugin.where, self.name, hook, exc_info=error)
            raise self.plugin.error(f"the hook raised {type(error).__name__}: {text_of(error)}", hook=hook) from error

    def _typed(self, hook: str, answer: Any, kind: type[T]) -> T:
        if not isinstance(answer, kind):
            raise self._wrong(hook, kind.__name__, _described(answer))
        return answer

    def _sequence(self, hook: str, answer: Any) -> Sequence[Any]:
        if not isinstance(answer, list | tuple):
            raise self._wrong(hook, "a list", _described(answer))
        return answer

    def _wrong(self, hook: str, expected: str, found: str) -> PluginError:
        return self.plugin.error("the answer is of the wrong type", hook=hook, expected=expected, found=found)


def _described(answer: Any) -> str:
    return "None (no answer)" if answer is None else f"{type(answer).__name__} {_shown(answer)}"


def _shown(answer: Any) -> str:
    try:
        return f"{answer!r:.80}"
    except Exception as error:  # the message about a wrong answer must not fail because of it
        return f"(its repr raised {type(error).__name__})"


def _is_backend(item: Any) -> bool:
    """A name, or something shaped like a backend; by shape, for the protocol's module imports torch."""
    if isinstance(item, str):
        return bool(item)
    return callable(item) and isinstance(getattr(item, "name", None), str) and callable(getattr(item, "supports", None))


class HookCallLog:
    """Logs every hook call of one family at DEBUG: the arguments' names, the answer's type, the duration.

    For `pluggy.PluginManager.add_hookcall_monitoring`.
    """

    def __init__(self, plugin: InstalledPlugin) -> None:
        self._plugin = plugin
        self._started: list[float] = []

    def before(self, hook: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
        """Note the time; pluggy calls this just before the hook."""
        self._started.append(time.perf_counter())

    def after(
        self, outcome: pluggy.Result[Any], hook: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]
    ) -> None:
        """Log the call; pluggy calls this when the hook has answered or raised."""
        milliseconds = 1000 * (time.perf_counter() - self._started.pop())
        error = outcome.exception
        answer = type(outcome.get_result()).__name__ if error is None else f"raised {type(error).__name__}"
        where, names = f"{self._plugin.where} [{self._plugin.name}]", ", ".join(arguments)
        logger.debug("%s, hook %s(%s): %s, %.1f ms", where, hook, names, answer, milliseconds)

"""Choosing a backend: the first of a family's preferences that can run, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import cast

from attrs import frozen

from apr_train.errors import AttentionError
from apr_train.model.attention.backend import AttentionBackend, Request
from apr_train.run.option import flag
from apr_train.run.other_names import meant_value
from apr_train.suggest import nearest

BACKEND_NAMES = ("xformers", "sdpa", "eager")
"""The core's backends; a family may add objects of its own."""

_MODULES = {
    "xformers": ("apr_train.model.attention.xformers", "XformersAttention"),
    "sdpa": ("apr_train.model.attention.sdpa", "SdpaAttention"),
    "eager": ("apr_train.model.attention.eager", "EagerAttention"),
}


@frozen(kw_only=True)
class Choice:
    """The backend that runs, and why others do not."""

    backend: AttentionBackend
    rejected: Mapping[str, str]
    """Name → reason, for every preference that came before the chosen one."""
    forced: bool = False
    """Whether the user asked for this one by name."""

    def __str__(self) -> str:
        """The backend, how it was chosen, and the reasons against the others, in a line."""
        how = "as asked" if self.forced else "first that can run"
        reasons = "".join(f"; not {name}: {reason}" for name, reason in self.rejected.items())
        return f"{self.backend.name} ({how}){reasons}"


def load_backend(name: str) -> AttentionBackend:
    """Import one of the core's backends by name.

    Raises:
        AttentionError: for a name that the core does not have.
    """
    if name not in _MODULES:
        raise AttentionError(
            "no such attention backend",
            where="attention",
            expected=", ".join(BACKEND_NAMES),
            found=name,
            hint=meant_value("attention", name, flag) or nearest(name, BACKEND_NAMES),
        )
    module, attribute = _MODULES[name]
    return cast(AttentionBackend, getattr(import_module(module), attribute)())


def choose_backend(preferences: Sequence[str | AttentionBackend], request: Request, forced: str | None = None) -> Choice:
    """Take the first preference that supports `request`, or the one that `forced` names, with the reasons against the others.

    A preflight asks as well as the run after it: whoever then uses the backend logs the choice.

    Raises:
        AttentionError: when none can run, when the forced one cannot, or for an unknown name. Nothing falls back.
    """
    return _first(preferences, request) if forced is None else _forced(preferences, request, forced)


def _first(preferences: Sequence[str | AttentionBackend], request: Request) -> Choice:
    rejected: dict[str, str] = {}
    for preference in preferences:
        backend = load_backend(preference) if isinstance(preference, str) else preference
        reason = backend.supports(request)
        if reason is None:
            return Choice(backend=backend, rejected=rejected)
        rejected[backend.name] = reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    raise AttentionError("no attention backend can run", where="attention", found=reasons or "no preference", hint=str(request))


def _forced(preferences: Sequence[str | AttentionBackend], request: Request, name: str) -> Choice:
    own = [item for item in preferences if not isinstance(item, str) and item.name == name]
    backend = own[0] if own else load_backend(name)
    reason = backend.supports(request)
    if reason is not None:
        raise AttentionError(
            f"attention backend {name} cannot run here: {reason}",
            where="--attention",
            hint="Leave --attention out to have one chosen.",
        )
    return Choice(backend=backend, rejected={}, forced=True)

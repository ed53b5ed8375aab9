"""The sources of a run: what its settings say of each, with nothing left open but the weights."""

from __future__ import annotations

from attrs import frozen

from apr_train.data.conversations import Conversations
from apr_train.data.documents import Take, TextRecords
from apr_train.data.objectives import OBJECTIVES
from apr_train.errors import ConfigError
from apr_train.family.card import DEFAULT_OBJECTIVE
from apr_train.run.objective_names import SourceKind
from apr_train.run.settings import DataArgument, DataSettings, Settings


@frozen(kw_only=True)
class Source:
    """One part of what a run learns from."""

    name: str | None
    """What it is called in metrics and report; None where there is one source only, and nobody named it."""
    paths: tuple[str, ...]
    """Files, folders and globs; none stand for the standard library."""
    kind: SourceKind
    weight: float | None
    """Its share of the rows by the sum of all weights; None: by the rows that each has."""
    max_epochs: int | None
    """How often it is gone through at most; None: as often as the run goes on."""
    take: Take
    """What is taken of each record."""


def sources_of(data: DataSettings, kind: SourceKind) -> tuple[Source, ...]:
    """The sources in the order of the settings: one without a name, or several with names.

    Args:
        data: `data` and `source`; only one of them may be given.
        kind: of a source that does not say.

    Raises:
        ConfigError: for names that are missing beside others, or there twice, and for weights that some have.
    """
    arguments = [DataArgument.parse(text) for text in data.data]
    if arguments and data.source:
        raise ConfigError("sources are named twice", where="--data, [[data.source]]", expected="one of the two", found="both")
    named = [argument for argument in arguments if argument.name is not None]
    if named and len(named) < len(arguments):
        found = next(argument.path for argument in arguments if argument.name is None)
        raise ConfigError("a source without a name beside others", where="--data", expected="NAME=PATH:WEIGHT", found=found)
    if data.source:
        sources = tuple(
            Source(
                name=item.name,
                paths=item.path,
                kind=item.kind or kind,
                weight=item.weight,
                max_epochs=item.max_epochs,
                take=_take(item.kind or kind, item.text_field or data.text_field),
            )
            for item in data.source
        )
    else:
        take = _take(kind, data.text_field)
        groups = {name: [item for item in named if item.name == name] for name in dict.fromkeys(item.name for item in named)}
        sources = tuple(
            Source(
                name=name,
                paths=tuple(item.path for item in items),
                kind=kind,
                weight=None,
                max_epochs=None,
                take=take,
            )
            for name, items in groups.items()
        ) or (Source(name=None, paths=data.data, kind=kind, weight=None, max_epochs=None, take=take),)
    return sources


def _take(kind: SourceKind, text_field: str | None) -> Take:
    return Conversations() if kind == "chat" else TextRecords(text_field)


def take_of(settings: Settings) -> Take:
    """What is taken of the records of a run's only source."""
    kind = OBJECTIVES[settings.model.objective or DEFAULT_OBJECTIVE].source_kinds[0]
    return _take(kind, settings.data.text_field)

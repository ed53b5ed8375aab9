"""The sources of a run: what its settings say of each, judged together, with nothing left open but the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from fractions import Fraction
from math import isfinite
from pathlib import Path

import attrs
from attrs import frozen

from apr_train import rules
from apr_train.data.conversations import Conversations
from apr_train.data.documents import Take, TextRecords
from apr_train.data.id_documents import ShardIds
from apr_train.data.objectives import OBJECTIVES, Objective
from apr_train.data.reading import Wanted
from apr_train.data.shards import is_shard
from apr_train.data.sources import describe_sources
from apr_train.errors import ConfigError, Finding
from apr_train.family.card import DEFAULT_OBJECTIVE
from apr_train.run.data_argument import SOURCE_NAME, DataArgument
from apr_train.run.objective_names import SourceKind
from apr_train.run.settings import DataSettings, Settings, SourceSettings

_HOW = "Name it with --data NAME=PATH:WEIGHT, or with name, path and weight in [[data.source]]."


@frozen(kw_only=True)
class Source:
    """One part of what a run learns from, or of what it is measured on."""

    name: str | None
    """What it is called in metrics and report; None for the only one, which nobody named."""
    paths: tuple[str, ...]
    """Files, folders and globs; none stand for the standard library."""
    kind: SourceKind
    weight: Fraction | None = None
    """Its share of the rows by the sum of all weights; None: by the rows that each has."""
    max_epochs: int | None = None
    """How often it is gone through at most; None: as often as the run goes on."""
    take: Take
    """What is taken of each record."""


@frozen(kw_only=True)
class Sources:
    """What `--data` and `--val-data` ask for."""

    learnt: tuple[Source, ...]
    """At least one; a single one without a name, or each with one."""
    held_out: tuple[Source, ...] = ()
    """A held-out set of one's own; none: a share of `learnt` is held out."""


def objective_of(settings: Settings) -> Objective:
    """The objective as far as the settings say; it may be the family's."""
    return OBJECTIVES[settings.model.objective or DEFAULT_OBJECTIVE]


def sources_of(data: DataSettings, objective: Objective) -> Sources:
    """The sources in the order of the settings.

    Raises:
        ConfigError: PREFLIGHT-040, for everything that is wrong with them.
    """
    sources, findings = read_sources(data, objective)
    if findings:
        raise ConfigError.of(findings)
    return sources


def read_sources(data: DataSettings, objective: Objective) -> tuple[Sources, list[Finding]]:
    """The sources, as far as they are said, and what is wrong with them."""
    tables, findings = _tables("--data", data.data)
    if tables and data.source:
        findings.append(_fault("--data", "sources are named twice", expected="--data, or [[data.source]]", found="both"))
    option = "--data" if tables or not data.source else "[[data.source]]"
    tables = tables or list(data.source) or [SourceSettings()]
    unread = {finding.field for finding in findings}
    findings += (
        _mixture_findings(option, tables, unread) if len(tables) > 1 or tables[0].name is not None or data.source else []
    )
    own, wrong = _tables("--val-data", data.val_data)
    findings += [*wrong, *_share_findings("--val-data", own)]
    known = {table.name: table for table in tables}
    own = [_like(table, known.get(table.name)) for table in own]
    findings += _name_findings("--val-data", own) if len(own) > 1 else []
    findings += [finding for table in tables for finding in _kind_findings(option, table, objective)]
    findings += [finding for table in own for finding in _kind_findings("--val-data", table, objective)]
    learnt, held_out = (tuple(_source(table, data, objective) for table in group) for group in (tables, own))
    return Sources(learnt=learnt, held_out=held_out), findings


def _tables(option: str, arguments: Sequence[str]) -> tuple[list[SourceSettings], list[Finding]]:
    """Arguments as tables: one without a name for all paths, or one for each name."""
    parsed = [DataArgument.parse(text) for text in arguments]
    paths = tuple(argument.path for argument in parsed if argument.name is None)
    tables = [SourceSettings(path=paths)] if paths else []
    findings = []
    for argument in (argument for argument in parsed if argument.name is not None):
        try:
            tables.append(argument.source())
        except ConfigError as error:
            findings.append(error.amend(subject=option, field=argument.name or "").under(rules.PREFLIGHT_040))
            tables.append(attrs.evolve(argument, weight=None).source())
    return tables, findings


def _mixture_findings(option: str, tables: Sequence[SourceSettings], unread: Container[str | None]) -> Iterator[Finding]:
    """Names and weights of several sources, or of one in a table; `unread` are those whose weight is refused already."""
    yield from _name_findings(option, tables)
    yield from _weight_findings(option, tables, unread)
    for place, table in enumerate(tables):
        if not table.path:
            yield _fault(option, "a source without a path", _label(table, place), expected="path", hint=_HOW)


def _name_findings(option: str, tables: Sequence[SourceSettings]) -> Iterator[Finding]:
    for place, table in enumerate(tables):
        if table.name is None:
            found = ", ".join(table.path) or f"table {place + 1}"
            yield _fault(option, "a source without a name beside others", expected="a name for each", found=found, hint=_HOW)
        elif not SOURCE_NAME.fullmatch(table.name):
            expected = "a letter, then letters, digits, _ and -"
            yield _fault(option, "not a name for a source", expected=expected, found=repr(table.name))
    for name, times in Counter(table.name for table in tables if table.name is not None).items():
        if times > 1:
            hint = "A source of several paths is a list: path = [...] in [[data.source]]."
            yield _fault(option, "two sources of one name", name, expected="each name once", found=f"{times} times", hint=hint)


def _weight_findings(option: str, tables: Sequence[SourceSettings], unread: Container[str | None]) -> Iterator[Finding]:
    weights = _weights(tables)
    without = [_label(table, place) for place, table in enumerate(tables) if table.weight is None]
    missing = [label for label in without if label not in unread]
    if weights and missing:
        hint = "Give each a weight, or none: then each has its share by the rows that it has."
        yield _fault(
            option, "weights for some sources only", expected="all or none", found=f"none for {', '.join(missing)}", hint=hint
        )
    elif weights and not any(weights.values()):
        expected = "a sum above 0"
        yield _fault(option, "the weights sum to nothing", expected=expected, found=", ".join(f"{n} 0" for n in weights))
        return
    yield from _share_findings(option, tables)


def _weights(tables: Sequence[SourceSettings]) -> dict[str, float]:
    return {_label(table, place): table.weight for place, table in enumerate(tables) if table.weight is not None}


def _share_findings(option: str, tables: Sequence[SourceSettings]) -> Iterator[Finding]:
    for name, weight in _weights(tables).items():
        if weight <= 0 or not isfinite(weight):
            hint = "Leave the source out if nothing of it shall be learnt."
            yield _fault(option, "a weight that is no share", name, expected="more than 0", found=f"{weight:g}", hint=hint)


def _kind_findings(option: str, table: SourceSettings, objective: Objective) -> Iterator[Finding]:
    name, kinds = table.name or "", objective.source_kinds
    shards = [path for path in table.path if _is_shard(path)]
    kind = _kind(table, objective)
    if kind not in kinds:
        because = f"{kind}, as {shards[0]} is one" if table.kind is None and shards else str(kind)
        problem = f"the objective {objective.name} does not learn from a source of this kind"
        yield _fault(option, problem, name, expected=" or ".join(kinds), found=because)
    if table.text_field is not None and kind != "text":
        yield _fault(option, "a text field of a source that has no texts", name, expected="no text_field", found=f"{kind}")
    others = [path for path in table.path if Path(path).suffix and not _is_shard(path)]
    if table.kind is None and shards and others:
        hint = "Make two sources of them, each with a name."
        problem = "shards of token ids and texts in one source"
        yield _fault(option, problem, name, expected="one of the two", found=f"{shards[0]} and {others[0]}", hint=hint)


def _fault(option: str, problem: str, name: str = "", *, expected: str, found: str = "nothing", hint: str = "") -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_040, subject=option, field=name, problem=problem, expected=expected, found=found, hint=hint
    )


def _label(table: SourceSettings, place: int) -> str:
    return table.name or f"source {place + 1}"


def _like(table: SourceSettings, other: SourceSettings | None) -> SourceSettings:
    """A held-out source, which is read as the one of its name is that is learnt, and weighs as much."""
    if other is None or other.name is None:
        return table
    weight = other.weight if table.weight is None else table.weight
    if any(map(_is_shard, table.path)):
        return attrs.evolve(table, weight=weight)
    return attrs.evolve(table, kind=other.kind, text_field=other.text_field, weight=weight)


def _is_shard(path: str) -> bool:
    """Naming a file of ids says what the source is."""
    return is_shard(Path(path))


def _kind(table: SourceSettings, objective: Objective) -> SourceKind:
    implied: SourceKind = "tokens" if any(map(_is_shard, table.path)) else objective.source_kinds[0]
    return table.kind or implied


def _source(table: SourceSettings, data: DataSettings, objective: Objective) -> Source:
    kind = _kind(table, objective)
    usable = table.weight is not None and isfinite(table.weight)
    return Source(
        name=table.name,
        paths=table.path,
        kind=kind,
        weight=Fraction(str(table.weight)) if usable else None,
        max_epochs=table.max_epochs,
        take=_take(kind, table.text_field or data.text_field),
    )


def _take(kind: SourceKind, text_field: str | None) -> Take:
    return Conversations() if kind == "chat" else TextRecords(text_field)


def wanted_of(sources: Iterable[Source], shards: ShardIds | None = None) -> list[Wanted]:
    """What is to be read of each source.

    Args:
        sources: in their order.
        shards: what the ids of those mean that are made of ids; may be left out where there are none.
    """
    ids = {"tokens": shards}
    return [Wanted(name=item.name, paths=item.paths, take=item.take, shards=ids.get(item.kind)) for item in sources]


def described(sources: Sources) -> str:
    """The names and the paths of sources, for a reader."""
    learnt, held_out = ("; ".join(map(_described, group)) for group in (sources.learnt, sources.held_out))
    return " · ".join(text for text in (learnt, f"held out: {held_out}" if held_out else "") if text)


def _described(source: Source) -> str:
    text = describe_sources(source.paths)
    return text if source.name is None else f"{source.name}: {text}"

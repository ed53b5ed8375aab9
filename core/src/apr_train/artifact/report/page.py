"""The report as one HTML page: nothing is loaded, so that it opens from the disk, from a mail, in ten years."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources

from attrs import frozen

from apr_train.artifact.report.chart import chart
from apr_train.artifact.report.curves import Panel, panels, sources_in
from apr_train.errors import Finding
from apr_train.run.folder import PREFLIGHT
from apr_train.run.metrics import mean_speed
from apr_train.run.record import Record
from apr_train.run.units import NOTHING, count, duration, loss, number, size

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser holds the page to: it can reach nothing."""

_PLACE = ("run.run", "run.out")
"""Settings that only say where the run lies: they always differ."""


@frozen(kw_only=True)
class Numbers:
    """The results of a run; None for what was not measured."""

    step: int
    planned: int | None
    tokens: int | None
    first: float | None
    last: float | None
    """Validation loss before the first step, and the last one."""
    best: tuple[int, float] | None
    """Step and value of the lowest validation loss."""
    perplexity: float | None
    accuracy: float | None
    loss: float | None
    speed: float | None
    seconds: float
    memory: int | None


def numbers(record: Record) -> Numbers:
    """The results of a run, from its metrics and settings."""
    measured = record.measured
    losses = [(line.step, line.val_loss) for line in measured if line.val_loss is not None]
    planned = record.settings.get("run.steps")
    return Numbers(
        step=record.lines[-1].step,
        planned=planned if isinstance(planned, int) else None,
        tokens=next((line.tokens for line in reversed(record.lines) if line.tokens is not None), None),
        first=losses[0][1] if losses else None,
        last=losses[-1][1] if losses else None,
        best=min(losses, key=lambda item: item[1]) if losses else None,
        perplexity=measured[-1].perplexity if measured else None,
        accuracy=measured[-1].val_accuracy if measured else None,
        loss=next((line.loss for line in reversed(record.lines) if line.loss is not None), None),
        speed=mean_speed(record.lines),
        seconds=sum(line.step_time or 0.0 for line in record.lines),
        memory=max((line.memory for line in record.lines if line.memory is not None), default=None),
    )


def report_page(records: Sequence[Record]) -> str:
    """HTML of one or several runs; the same runs give the same page."""
    drawn = panels(records)
    found = [numbers(record) for record in records]
    names = ", ".join(record.label for record in records)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="color-scheme" content="light dark"><meta name="generator" content="apr-train">'
        f"<title>{escape(names)} · training report</title><style>{_asset('page.css')}</style></head>\n<body>"
        f"{_header(records)}<main>"
        f"{_section('Results', _cards(records, found))}"
        f"{_section('Curves', _legend(records) + _charts(drawn))}"
        f"{_section('Final numbers', _numbers_table(records, found))}{''.join(_sources(records))}"
        f"{''.join(_settings(records))}{''.join(_preflight(records))}{''.join(_samples(records))}"
        f"</main>\n"
        f'<script type="application/json" id="data">{_data(records, drawn)}</script>'
        f"<script>{_asset('page.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _data(records: Sequence[Record], drawn: Sequence[Panel]) -> str:
    content = {
        "runs": [record.label for record in records],
        "panels": {
            panel.quantity.key: {
                "steps": panel.steps,
                "values": panel.values,
                "log": panel.log,
                "series": [{"run": item.run, "points": item.points, "smoothed": item.smoothed} for item in panel.series],
            }
            for panel in drawn
        },
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _header(records: Sequence[Record]) -> str:
    families = dict.fromkeys(str(record.settings.get("model.arch", "")) for record in records)
    what = ", ".join(name for name in families if name)
    title = records[0].label if len(records) == 1 else f"{len(records)} runs compared"
    return (
        f'<header><p class="eyebrow">apr-train · training report</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(what)}</p></header>'
    )


def _section(title: str, content: str) -> str:
    return f'<section id="{title.lower().replace(" ", "-")}"><h2>{escape(title)}</h2>{content}</section>'


def _legend(records: Sequence[Record]) -> str:
    if len(records) == 1:
        return ""
    chips = "".join(
        f'<button type="button" aria-pressed="true" data-run="{run}">{_key(run, record.label)}</button>'
        for run, record in enumerate(records)
    )
    return f'<div class="legend" role="group" aria-label="Runs: press to hide or show">{chips}</div>'


def _charts(drawn: Sequence[Panel]) -> str:
    return f'<div class="panels">{"".join(chart(panel) for panel in drawn)}</div>'


def _cards(records: Sequence[Record], found: Sequence[Numbers]) -> str:
    """One card a run: the number that matters, large."""
    ended = [item.last for item in found if item.last is not None]
    best = min(ended) if len(records) > 1 and ended else None
    cards = (_card(run, records[run], item, best=item.last == best) for run, item in enumerate(found))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(run: int, record: Record, item: Numbers, *, best: bool) -> str:
    badge = '<span class="badge">lowest</span>' if best and item.last is not None else ""
    change = f'<p class="change">{_change(item.first, item.last)}</p>' if item.step > 0 else ""
    facts = [f"{count(item.step)} of {count(item.planned)} steps" if item.planned else f"{count(item.step)} steps"]
    facts += [f"perplexity {number(item.perplexity)}"] if item.perplexity is not None else []
    facts += [f"{number(item.speed)} tokens/s"] if item.speed is not None else []
    what = "validation loss" if item.last is not None else "training loss"
    value = item.last if item.last is not None else item.loss
    return (
        f'<article class="card run-{run % 8}"><h3>{_key(run, record.label)}{badge}</h3>'
        f'<p class="big">{loss(value)}<small>{what}</small></p>{change}<p class="facts">{" · ".join(facts)}</p></article>'
    )


def _change(first: float | None, last: float | None) -> str:
    if first is None or last is None:
        return ""
    share = abs(last - first) / first if first > 0 else math.nan
    sign = "−" if last <= first else "+"
    return f"from {loss(first)}" + (f" ({sign}{share:.0%})" if math.isfinite(share) else "")


def _numbers_table(records: Sequence[Record], found: Sequence[Numbers]) -> str:
    """Every number, a row a run."""
    head = ["run", "steps", "tokens", "validation loss", "lowest", "perplexity", "training loss", "tokens/s", "time", "memory"]
    accurate = any(item.accuracy is not None for item in found)
    rows = []
    for run, item in enumerate(found):
        lowest = f"{loss(item.best[1])} <small>at {count(item.best[0])}</small>" if item.best else NOTHING
        cells = [
            _key(run, records[run].label),
            count(item.step),
            count(item.tokens),
            loss(item.last),
            lowest,
            number(item.perplexity),
            loss(item.loss),
            number(item.speed),
            duration(item.seconds) if item.seconds else NOTHING,
            size(item.memory),
        ]
        rows.append([*cells, number(item.accuracy)] if accurate else cells)
    return _table([*head, "accuracy"] if accurate else head, rows, label="Final numbers")


def _settings(records: Sequence[Record]) -> Iterator[str]:
    keys = [name for name in dict.fromkeys(name for record in records for name in record.settings) if name not in _PLACE]
    rows = [(name, [_value(record, name) for record in records]) for name in keys]
    same = [(name, values[0]) for name, values in rows if len(set(values)) == 1]
    differing = [(name, values) for name, values in rows if len(set(values)) > 1]
    parts = []
    if differing:
        head = ["setting", *(_key(run, record.label) for run, record in enumerate(records))]
        cells = [[escape(name), *(f"<code>{escape(value)}</code>" for value in values)] for name, values in differing]
        parts.append(_table(head, cells, label="Settings that differ"))
    elif len(records) > 1:
        parts.append("<p>All settings are the same.</p>")
    title = "All settings" if len(records) == 1 else f"The {len(same)} settings that all runs share"
    parts.append(f"<details><summary>{title}</summary>{_pairs(same)}</details>")
    yield _section("What differs" if len(records) > 1 else "Settings", "".join(parts))


def _value(record: Record, name: str) -> str:
    value = record.settings.get(name)
    if value is None or value in ((), []):
        return NOTHING
    return ", ".join(map(_item, value)) if isinstance(value, tuple | list) else str(value)


def _item(value: object) -> str:
    """One of several values; a table as its keys and values, a list in it with commas."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or NOTHING
    if not isinstance(value, Mapping):
        return str(value)
    return " ".join(f"{key}={_item(item)}" for key, item in value.items() if item is not None)


def _preflight(records: Sequence[Record]) -> Iterator[str]:
    yield _section("Preflight", "".join(_judged(run, record) for run, record in enumerate(records)))


def _judged(run: int, record: Record) -> str:
    preflight = record.preflight
    if preflight is None:
        said = f"There is no {PREFLIGHT} in the folder of this run."
        return f"<details><summary>{_key(run, record.label)}<em>not known</em></summary><p>{said}</p></details>"
    total = len(preflight.findings)
    state = f"{total} finding{'s' * (total != 1)}" if total else "no finding"
    findings = "".join(map(_finding, preflight.findings))
    findings = findings and f'<ul class="findings">{findings}</ul>'
    opened = " open" if findings else ""
    summary = f"<summary>{_key(run, record.label)}<em>{state}</em></summary>"
    return f"<details{opened}>{summary}{findings}{_pairs(preflight.rows)}</details>"


def _finding(finding: Finding) -> str:
    """An item: what is wrong and where, expected and found, what to do."""
    rule = f" <code>{escape(finding.rule)}</code>" if finding.rule else ""
    where = f"{escape(finding.where)}: " if finding.where else ""
    values = [(name, value) for name, value in (("expected", finding.expected), ("found", finding.found)) if value]
    told = "".join(f"<br>{name} <code>{escape(value)}</code>" for name, value in values)
    hint = f"<br><em>{escape(finding.hint)}</em>" if finding.hint else ""
    severity = escape(finding.severity)
    return f'<li class="{severity}"><strong>{severity}</strong>{rule} {where}{escape(finding.problem)}{told}{hint}</li>'


def _samples(records: Sequence[Record]) -> Iterator[str]:
    """The last sample of every run that has one."""
    found = [
        f'<figure class="sample"><figcaption>{_key(run, record.label)} at step {count(sample.step)}</figcaption>'
        f"<pre>{escape(sample.prompt)}<mark>{escape(sample.text)}</mark></pre></figure>"
        for run, record in enumerate(records)
        for sample in record.samples[-1:]
    ]
    if found:
        told = "<p>What each model wrote at the end of its run; the prompt is grey.</p>"
        yield _section("Samples", f'{told}<div class="samples">{"".join(found)}</div>')


def _sources(records: Sequence[Record]) -> Iterator[str]:
    """What each run of a mixture read of its sources, and how well it knows them: a row a source."""
    rows = []
    for run, record in enumerate(records):
        read: Mapping[str, int] = next((line.source_tokens for line in reversed(record.lines) if line.source_tokens), {})
        losses = [line.source_val_loss for line in record.lines if line.source_val_loss]
        for name in sources_in([record]):
            values = [value for line in losses if (value := line.get(name)) is not None]
            share = f"{read[name] / max(1, sum(read.values())):.1%}" if name in read else NOTHING
            ends = (values[0], values[-1]) if values else (None, None)
            rows.append([_key(run, record.label), escape(name), count(read.get(name)), share, *map(loss, ends)])
    if rows:
        head = ["run", "source", "tokens", "share", "validation loss at first", "at last"]
        yield _section("Sources", _table(head, rows, label="Sources"))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str) -> str:
    """A table whose cells are HTML already; the first cell of a row heads the row."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _pairs(items: Iterable[tuple[str, str]]) -> str:
    """Names and values of a file, escaped."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    return f'<dl class="pairs">{rows}</dl>'


def _key(run: int, label: str) -> str:
    """The name of a run behind a dash of the run's colour."""
    return f'<span class="key run-{run % 8}{" again" if run >= 8 else ""}"></span>{escape(label)}'

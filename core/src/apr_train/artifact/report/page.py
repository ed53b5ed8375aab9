"""The report as one HTML page: nothing is loaded, so that it opens from the disk, from a mail, in ten years."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources

from apr_train.artifact.report.chart import chart
from apr_train.artifact.report.curves import Panel, panels
from apr_train.artifact.report.numbers import summary_cards, summary_table
from apr_train.artifact.report.text import key, pairs, table
from apr_train.run.record import Record

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser holds the page to: it can reach nothing."""

_PLACE = ("run.run", "run.out")
"""Settings that only say where the run lies: they always differ."""


def report_page(records: Sequence[Record]) -> str:
    """HTML of one or several runs; the same runs give the same page."""
    drawn = panels(records)
    names = ", ".join(record.label for record in records)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="color-scheme" content="light dark"><meta name="generator" content="apr-train">'
        f"<title>{escape(names)} · training report</title><style>{_asset('page.css')}</style></head>\n<body>"
        f"{_header(records)}<main>"
        f"{_section('Results', summary_cards(records))}"
        f"{_section('Curves', _legend(records) + _charts(drawn))}"
        f"{_section('Final numbers', summary_table(records))}"
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
            panel.quantity.name: {
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
        f'<button type="button" aria-pressed="true" data-run="{run}">{key(run, record.label)}</button>'
        for run, record in enumerate(records)
    )
    return f'<div class="legend" role="group" aria-label="Runs: press to hide or show">{chips}</div>'


def _charts(drawn: Sequence[Panel]) -> str:
    return f'<div class="panels">{"".join(chart(panel) for panel in drawn)}</div>'


def _settings(records: Sequence[Record]) -> Iterator[str]:
    keys = [name for name in dict.fromkeys(name for record in records for name in record.settings) if name not in _PLACE]
    rows = [(name, [_value(record, name) for record in records]) for name in keys]
    same = [(name, values[0]) for name, values in rows if len(set(values)) == 1]
    differing = [(name, values) for name, values in rows if len(set(values)) > 1]
    parts = []
    if differing:
        head = ["setting", *(key(run, record.label) for run, record in enumerate(records))]
        cells = [[escape(name), *(f"<code>{escape(value)}</code>" for value in values)] for name, values in differing]
        parts.append(table(head, cells, label="Settings that differ"))
    elif len(records) > 1:
        parts.append("<p>All settings are the same.</p>")
    title = "All settings" if len(records) == 1 else f"The {len(same)} settings that all runs share"
    parts.append(f"<details><summary>{title}</summary>{pairs(same)}</details>")
    yield _section("What differs" if len(records) > 1 else "Settings", "".join(parts))


def _value(record: Record, name: str) -> str:
    value = record.settings.get(name)
    if value is None or value in ((), []):
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _preflight(records: Sequence[Record]) -> Iterator[str]:
    yield _section("Preflight", "".join(_judged(run, record) for run, record in enumerate(records)))


def _judged(run: int, record: Record) -> str:
    card = record.card
    if card is None or not card.has_preflight:
        said = "The run's MODEL_CARD.md is written at its end; until then its preflight is not in its folder."
        return f"<details><summary>{key(run, record.label)}<em>not known</em></summary><p>{said}</p></details>"
    findings = "".join(
        f'<li class="{severity}"><strong>{severity}</strong> {escape(text)}</li>' for severity, text in card.findings
    )
    findings = findings and f'<ul class="findings">{findings}</ul>'
    state = f"{len(card.findings)} finding{'s' * (len(card.findings) != 1)}" if card.findings else "no finding"
    opened = " open" if card.findings else ""
    return (
        f"<details{opened}><summary>{key(run, record.label)}<em>{state}</em></summary>{findings}{pairs(card.facts)}</details>"
    )


def _samples(records: Sequence[Record]) -> Iterator[str]:
    found = [
        f'<figure class="sample"><figcaption>{key(run, record.label)}</figcaption>'
        f"<pre>{escape(record.card.sample[0])}<mark>{escape(record.card.sample[1])}</mark></pre></figure>"
        for run, record in enumerate(records)
        if record.card is not None and record.card.sample is not None
    ]
    if found:
        told = "<p>What each model wrote at the end of its run; the prompt is grey.</p>"
        yield _section("Samples", f'{told}<div class="samples">{"".join(found)}</div>')

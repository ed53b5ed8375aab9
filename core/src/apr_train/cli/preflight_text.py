"""A preflight's report for people: a table on a terminal, lines in a pipe, a summary of what was right."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from apr_train.cli.by_layer import by_layer
from apr_train.cli.output import emit_findings, emit_pairs, tell
from apr_train.errors import printable
from apr_train.run.units import size

if TYPE_CHECKING:
    from apr_train.errors import Finding
    from apr_train.preflight import Report


def print_report(report: Report) -> None:
    """Print findings (those of many layers as one), what was skipped and why, and what was checked."""
    findings = by_layer(report.findings)
    if sys.stdout.isatty():
        _table(findings, str(report.facts.get("file", "")))
    else:
        emit_findings(findings, err=False)
    for item in report.skipped:
        tell(f"not checked: {item.what}, because {item.because}")
    if report.explained:
        tell(f"{len(report.explained)} faults of single tensors follow from the above; --json lists them")
    for note in report.notes:
        tell(f"note: {note}")
    emit_pairs(_summary(report.facts))
    _verdict(report)


def _table(findings: list[Finding], file: str) -> None:
    """With rich; the file's path, which the summary below has, is left out of every row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not findings:
        return
    table = Table(box=box.SIMPLE_HEAD, show_lines=True)
    for column in ("rule", "where", "what is wrong", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        colour = "bold red" if finding.severity == "error" else "bold yellow"
        table.add_row(
            Text(f"{finding.severity}\n{finding.rule}", style=colour), *(Text(cell) for cell in _cells(finding, file))
        )
    Console().print(table)


def _cells(finding: Finding, file: str) -> tuple[str, str, str]:
    values = [f"{name} {value}" for name, value in (("expected", finding.expected), ("found", finding.found)) if value]
    where = f"[{finding.field}]" if finding.field and finding.subject == file else finding.where
    return printable(where), printable("\n".join([finding.problem, *values]), lines=True), printable(finding.hint, lines=True)


def _summary(facts: dict[str, Any]) -> dict[str, object]:
    """The facts in words, in reading order; what is not known is left out."""
    plain = ("file", "format", "family", "class", "architecture", "preset", "attention")
    lines: dict[str, object] = {key: facts[key] for key in plain if facts.get(key)}
    if "parameters" in facts:
        lines["parameters"] = f"{facts['parameters']:,}"
    if "tensors" in facts:
        lines["tensors"] = _tensors(facts)
    if facts.get("tie"):
        lines["tied head"] = _tie(facts["tie"])
    if facts.get("rope_rows"):
        lines["rope rows"] = facts["rope_rows"]
    if "tokenizer" in facts:
        lines["tokenizer"] = f"{facts['tokenizer']['size']:,} tokens ({facts['tokenizer']['origin']})"
    if "vocab_size" in facts:
        lines["vocabulary"] = f"{facts['vocab_size']:,} rows"
        lines["positions"] = f"{facts['usable_positions']:,} usable"
    if "data" in facts:
        lines["data"] = _data(facts["data"])
    if "chat" in facts:
        lines["conversations"] = _conversations(facts["chat"])
    if "memory" in facts:
        lines["memory"] = ", ".join(f"{name} {size(count)}" for name, count in facts["memory"].items())
    return lines


def _tensors(facts: dict[str, Any]) -> str:
    tensors = facts["tensors"]
    text = f"{tensors['used']} of {tensors['total']} used"
    if tensors["filled"] + len(facts["fresh"]) < tensors["parameters"]:
        text += f", {tensors['filled']} of the model's {tensors['parameters']} filled"
    if facts["ignored"]:
        reasons = dict.fromkeys(facts["ignored"].values())
        text += f", {len(facts['ignored'])} of them ignored ({'; '.join(reasons)})"
    if facts["fresh"]:
        text += f", {len(facts['fresh'])} freshly initialised ({', '.join(facts['fresh'])})"
    return text


def _data(data: dict[str, Any]) -> str:
    seen = f"{data['text_bytes']:,} bytes of text in {data['files']:,} {'file' if data['files'] == 1 else 'files'}"
    if data["complete"]:
        return f"{seen}, all of it looked at"
    begun = f" (of {data['beginnings']:,} only the beginning)" if data["beginnings"] and data["files"] > 1 else ""
    first = "the first " if data["beginnings"] and data["files"] == 1 else ""
    return f"{first}{seen}{begun} looked at; there is more"


def _conversations(chat: dict[str, Any]) -> str:
    seen = f"{chat['kept']:,} of {'' if chat['complete'] else 'the first '}{chat['looked_at']:,} are learnt from"
    cut = f", {chat['cut']:,} of them cut" if chat["cut"] else ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in chat["left_out"].items())
    return f"{seen}{cut}" + (f"; left out: {reasons}" if reasons else "")


def _tie(tie: dict[str, Any]) -> str:
    known = {True: "yes", False: "no", None: "tie decided at load"}[tie["value"]]
    return known if tie["value"] is None else f"{known} ({tie['reason']})"


def _verdict(report: Report) -> None:
    counts = ", ".join(_count(items, word) for items, word in ((report.errors, "error"), (report.warnings, "warning")))
    colour = "red" if report.errors else "green"
    tell(("not ready: " if report.errors else "ready: ") + counts, fg=colour, bold=True)


def _count(items: tuple[Finding, ...], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"

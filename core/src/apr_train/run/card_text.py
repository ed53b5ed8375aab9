"""Read back from a run's MODEL_CARD.md what only stands there: the preflight and the sample."""

from __future__ import annotations

import re

from attrs import frozen

_CELLS = re.compile(r"(?<!\\)\|")
_FINDING = re.compile(r"^- (error|warning): (.*)$", re.MULTILINE)
_SAMPLE = re.compile(r"\n## Sample\n\n[^\n]*\n\n```\n(.*?)\n```\n\n```\n(.*)\n```\s*\Z", re.DOTALL)


@frozen(kw_only=True)
class Card:
    """The parts of a card; what the card does not have is empty or None."""

    about: tuple[tuple[str, str], ...] = ()
    """What the model is: the first table."""
    facts: tuple[tuple[str, str], ...] = ()
    """What the preflight looked at."""
    findings: tuple[tuple[str, str], ...] = ()
    """(severity, text) of each of its findings."""
    has_preflight: bool = False
    sample: tuple[str, str] | None = None
    """Prompt and continuation."""


def parse_card(text: str) -> Card:
    """Read a card that `apr_train.training.card` wrote; one that a person rewrote has fewer parts."""
    head, _, rest = text.rpartition("\n## Preflight\n")  # the last: a sample may hold anything
    preflight = rest.partition("\n## Settings\n")[0] if head else ""
    sample = _SAMPLE.search(head)
    return Card(
        about=_table(head.partition("\n## ")[0]),
        facts=_table(preflight)[1:],
        findings=tuple((match[1], match[2]) for match in _FINDING.finditer(preflight)),
        has_preflight=bool(head),
        sample=(sample[1], sample[2]) if sample else None,
    )


def _table(text: str) -> tuple[tuple[str, str], ...]:
    """The rows of a table with two columns, without the empty ones of its head."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in _CELLS.split(line)[1:-1]] if line.startswith("|") else []
        if len(cells) == 2 and any(cells) and set(cells) != {"---"}:
            rows.append((cells[0], cells[1]))
    return tuple(rows)

"""Model cards: what a card says as plain data, and the Markdown of it, for a run and for a publication alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from attrs import Factory, field, frozen

from apr_train.errors import printable
from apr_train.run.metrics import Metrics
from apr_train.run.preflight_file import PreflightRecord
from apr_train.run.samples import Sample
from apr_train.run.units import loss, number


@frozen(kw_only=True)
class Use:
    """How the model is used."""

    python: str
    """Code that loads the model."""
    command: str
    """The command of apr-train that does."""
    remark: str = ""


@frozen(kw_only=True)
class Card:
    """A model card as data; a part that is empty or None is left out of the text."""

    title: str
    front_matter: Mapping[str, Any] = Factory(dict)
    """Keys for programs, such as the Hugging Face Hub: strings, numbers, lists and mappings."""
    description: str = ""
    about: Mapping[str, str]
    """What the model is: name → value."""
    use: Use | None = None
    results: Sequence[Metrics] = field(default=(), repr=False)
    """The lines with a validation that are shown, by step."""
    own_held_out: bool = False
    """Whether they were measured on text that was held out by name, and not on a share of what is learnt."""
    outcome: str = ""
    """The run in a sentence: steps, tokens, speed."""
    sample: Sample | None = None
    training: Sequence[tuple[str, str]] = ()
    """How the model was trained: (name, value)."""
    preflight: PreflightRecord | None = None
    settings: str = field(default="", repr=False)
    """The run's settings as TOML."""
    files: str = ""
    """What lies beside the card."""


def markdown(card: Card) -> str:
    """The card's text: YAML front matter, the title, a table, and a section for every part.

    What a file, a prompt or a model says stands in it as text: no markup of Markdown or HTML, no control character.
    """
    head = yaml.safe_dump(dict(card.front_matter), sort_keys=False, allow_unicode=True) if card.front_matter else ""
    parts = [f"# {_inline(card.title)}"]
    parts += [_paragraph(card.description)] if card.description else []
    parts += [_table(("", ""), card.about.items())]
    for title, paragraphs in _sections(card):
        parts += [f"## {title}", *paragraphs] if paragraphs else []
    text = printable("\n\n".join(parts), lines=True)
    return (f"---\n{head}---\n\n" if head else "") + text + "\n"


def _sections(card: Card) -> Iterator[tuple[str, list[str]]]:
    """(title, paragraphs) of every section in order; no paragraph: the card does not have the section."""
    yield "Use", list(_use(card.use)) if card.use is not None else []
    yield "Results", [*_results(card.results, own=card.own_held_out), *([card.outcome] if card.outcome else [])]
    yield "Sample", _sample(card.sample) if card.sample is not None else []
    yield "Training", [_table(("", ""), card.training)] if card.training else []
    yield "Preflight", _preflight(card.preflight) if card.preflight is not None else []
    yield "Settings", [_fenced(card.settings, "toml")] if card.settings else []
    yield "Files", [card.files] if card.files else []


def _use(use: Use) -> Iterator[str]:
    if use.remark:
        yield use.remark
    yield _fenced(use.python, "python")
    yield f"With apr-train: {code(use.command)}."


def _results(lines: Sequence[Metrics], *, own: bool) -> Iterator[str]:
    if not lines:
        return
    head = ("step", "validation loss (nats per token)", "perplexity", "accuracy")
    width = 4 if any(line.val_accuracy is not None for line in lines) else 3
    rows = [(f"{line.step:,}", loss(line.val_loss), number(line.perplexity, 6), number(line.val_accuracy)) for line in lines]
    of = "a held-out set of its own" if own else "the training data's text that were held out from training"
    yield f"On rows of {of}:"
    yield _table(head[:width], [row[:width] for row in rows])


def _sample(sample: Sample) -> list[str]:
    asked = {
        "text": "The most likely continuation (greedy) of the first part:",
        "chat": "The most likely answer (greedy) to the first part:",
        "hole": "The most likely text (greedy) between the first part and the last:",
    }
    parts = [_fenced(sample.prompt), _fenced(sample.text), *([_fenced(sample.suffix)] if sample.kind == "hole" else [])]
    return [asked[sample.kind], *parts]


def _preflight(preflight: PreflightRecord) -> list[str]:
    findings = [f"- {finding.severity}: {_inline(str(finding))}" for finding in preflight.findings]
    return [_table(("fact", ""), preflight.rows), "\n".join(findings) or "No finding."]


def _fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any row of backticks in the text."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def code(text: str) -> str:
    """A code span that nothing in the text ends."""
    text, ticks = " ".join(text.split()), "`" * (_longest_ticks(text) + 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return _inline(text).replace("|", "\\|")


_MARKUP = re.compile(r"[\\`*\[\]]")
_BLOCK = re.compile(r"(?:[#>+=~:-]|\d+[.)])")
"""How a line begins that is a heading, a list, a quotation, a rule or a fence."""


def _inline(text: str) -> str:
    """Somebody's text on one line, without a meaning as Markdown or HTML."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKUP.sub(lambda found: f"\\{found[0]}", text)


def _paragraph(text: str) -> str:
    """Somebody's text as one paragraph."""
    text = _inline(text)
    begins = _BLOCK.match(text)
    return text if begins is None else f"{text[: begins.end() - 1]}\\{text[begins.end() - 1 :]}"

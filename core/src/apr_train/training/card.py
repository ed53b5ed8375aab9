"""MODEL_CARD.md: what the model is, what it was trained on, what the preflight and the run said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from apr_train.preflight.machine_rules import gigabytes
from apr_train.run.metrics import Metrics, mean_speed
from apr_train.run.settings_file import to_toml
from apr_train.training.setup import Prepared

_PROVENANCE = ("license", "data_source", "data_license", "source", "author", "version")


def model_card(prepared: Prepared, lines: list[Metrics], sample: tuple[str, str] | None) -> str:
    """Markdown; `sample` is a prompt and its continuation."""
    parts = [
        f"# {prepared.run.folder.name}",
        *_model(prepared),
        "## Results",
        *_results(prepared, lines),
        *_sample(sample),
        "## Preflight",
        *_preflight(prepared),
        "## Settings",
        f"```toml\n{to_toml(prepared.run.settings).strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _model(prepared: Prepared) -> Iterator[str]:
    run, report, header = prepared.run, prepared.report, prepared.inputs.header
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    rows = {
        "family": f"{run.settings.model.arch}, {report.family.distribution} {report.family.version}" if report.family else "",
        "parameters": f"{parameters:,}",
        "objective": run.objective.name,
        "attention": prepared.attention.summary,
        "started from": run.settings.model.init or "fresh weights",
        "init hash": prepared.inputs.identity.init or "–",
        "corpus": prepared.inputs.corpus.description,
        "corpus hash": prepared.inputs.identity.corpus,
        "tokenizer": f"{prepared.inputs.tokenizer.size:,} tokens, {prepared.inputs.identity.tokenizer}",
    }
    inherited = dict(header.provenance) if header is not None else {}
    rows |= {name: str(inherited.get(name) or "not stated") for name in _PROVENANCE}
    yield _table(("", ""), [(name, str(value)) for name, value in rows.items()])


def _results(prepared: Prepared, lines: list[Metrics]) -> Iterator[str]:
    measured = [line for line in lines if line.val_loss is not None]
    if measured:
        rows = [
            (str(line.step), f"{line.val_loss:.4f}", f"{line.perplexity:.3f}" if line.perplexity is not None else "–")
            for line in measured
        ]
        yield _table(("step", "validation loss (nats)", "perplexity"), rows)
    run = prepared.run
    speed = mean_speed(lines)
    numbers = f"{run.step} steps, {run.tokens:,} tokens"
    yield numbers + (f", {speed:,.0f} tokens/s on {run.device}, attention {prepared.attention.backend.name}." if speed else ".")


def _sample(sample: tuple[str, str] | None) -> Iterator[str]:
    if sample is not None:
        yield "## Sample"
        yield f"Greedy, after the prompt:\n\n```\n{sample[0]}\n```\n\n```\n{sample[1]}\n```"


def _preflight(prepared: Prepared) -> Iterator[str]:
    report = prepared.report
    memory = {name: gigabytes(count) for name, count in report.facts.get("memory", {}).items()}
    facts = report.facts | ({"memory": memory} if memory else {})
    yield _table(("fact", ""), [(name, _plain(value)) for name, value in facts.items()])
    findings = [f"- {finding.severity}: {finding}" for finding in report.findings]
    yield "\n".join(findings) if findings else "No finding."


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(attrs.asdict(value) if attrs.has(type(value)) else value)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)

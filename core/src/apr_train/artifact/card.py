"""The model card: front matter as the Hugging Face Hub reads it, then what a person wants to know. No path, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apr_train.artifact.front_matter import yaml_text
from apr_train.artifact.provenance import hub_license, spdx_expression
from apr_train.artifact.published import HUB_ID, Subject
from apr_train.run.metrics import Metrics

_ROWS = {
    "license": "licence",
    "data_source": "training data",
    "data_license": "licence of the data",
    "author": "author",
    "version": "version",
    "source": "made from",
}
_HASHES = {"init": "started from the weights", "corpus": "corpus", "tokenizer": "tokenizer"}


def model_card(subject: Subject) -> str:
    """The whole of README.md."""
    parts = [f"---\n{yaml_text(front_matter(subject))}---", f"# {subject.title}"]
    if description := subject.provenance.get("description"):
        parts.append(str(description))
    parts += [_about(subject), "## Use", *_use(subject)]
    parts += [*_results(subject), *_sample(subject), *_training(subject), "## Files", *_files(subject)]
    return "\n\n".join(parts) + "\n"


def front_matter(subject: Subject) -> dict[str, Any]:
    """The Hub's keys; one that nothing is known for is left out."""
    license_, name = hub_license(spdx_expression(str(subject.provenance["license"]), where="license"))
    source = str(subject.provenance.get("source") or "")
    base = subject.wishes.base_model or (source if "/" in source and HUB_ID.fullmatch(source) else None)
    index = _model_index(subject)
    found: dict[str, Any] = {
        "license": license_,
        "license_name": name,
        "library_name": "transformers",
        "pipeline_tag": subject.task,
        "base_model": base,
        "datasets": list(subject.datasets),
        "language": list(subject.wishes.languages),
        "tags": ["apr", subject.conversion.family.info.model_type],
        "metrics": [metric["type"] for result in index for metric in result["metrics"]],
        "model-index": [{"name": subject.title, "results": index}] if index else [],
    }
    return {key: value for key, value in found.items() if value not in (None, [])}


def _model_index(subject: Subject) -> list[dict[str, Any]]:
    line = _last_measured(subject)
    if line is None:
        return []
    values = {"perplexity": line.perplexity, "accuracy": line.val_accuracy}
    metrics = [{"type": name, "value": value} for name, value in values.items() if value is not None]
    data = {
        "type": subject.datasets[0] if subject.datasets else "held-out",
        "name": str(subject.provenance["data_source"]),
        "split": "validation",
    }
    return [{"task": {"type": subject.task}, "dataset": data, "metrics": metrics}] if metrics else []


def _last_measured(subject: Subject) -> Metrics | None:
    return subject.record.measured[-1] if subject.record is not None and subject.record.measured else None


def _about(subject: Subject) -> str:
    header, family = subject.conversion.header, subject.conversion.family
    types = Counter(tensor.dtype for tensor in header.tensors.values())
    rows = {
        "architecture": f"{subject.conversion.hf_class} ({family.name})",
        "parameters": f"{header.parameter_count:,}",
        "stored as": ", ".join(name for name, _ in types.most_common()),
        "vocabulary": f"{subject.conversion.config.vocab_size:,} tokens",
    }
    rows |= {text: str(subject.provenance[key]) for key, text in _ROWS.items() if subject.provenance.get(key)}
    return _table(("", ""), list(rows.items()))


def _use(subject: Subject) -> Iterator[str]:
    decoder = subject.conversion.family.info.kind == "decoder"
    auto = "AutoModelForCausalLM" if decoder else "AutoModelForMaskedLM"
    lines = [f"from transformers import {auto}, AutoTokenizer", "", f'model = {auto}.from_pretrained("FOLDER")']
    if subject.conversion.header.tokenizer is not None:
        lines.append('tokenizer = AutoTokenizer.from_pretrained("FOLDER")')
    else:
        lines[0] = f"from transformers import {auto}"
        yield "There is no tokenizer in this folder."
    yield "```python\n" + "\n".join(lines) + "\n```"
    word = "--prompt" if decoder else "--fill-mask"
    yield f'With apr-train: `apr-train generate {subject.artifact} {word} "…"`.'


def _results(subject: Subject) -> Iterator[str]:
    if subject.record is None or not subject.record.measured:
        return
    rows = [
        (f"{line.step:,}", f"{line.val_loss:.4f}", _number(line.perplexity), _number(line.val_accuracy))
        for line in _thinned(subject.record.measured)
    ]
    yield "## Results"
    yield "On rows of the training data's text that were held out from training:"
    head: Sequence[str] = ("step", "loss (nats per token)", "perplexity", "accuracy")
    width = 4 if any(row[3] != "–" for row in rows) else 3
    yield _table(head[:width], [row[:width] for row in rows])


def _thinned(lines: Sequence[Metrics], most: int = 12) -> list[Metrics]:
    """First, last, and evenly between."""
    if len(lines) <= most:
        return list(lines)
    return [lines[round(number * (len(lines) - 1) / (most - 1))] for number in range(most)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _sample(subject: Subject) -> Iterator[str]:
    if subject.sample is not None:
        yield "## Sample"
        text = "".join(subject.sample)
        fence = "```"
        while fence in text:
            fence += "`"
        yield f"The most likely continuation of the first part:\n\n{fence}\n{subject.sample[0]}\n{fence}\n\n" + (
            f"{fence}\n{subject.sample[1]}\n{fence}"
        )


def _training(subject: Subject) -> Iterator[str]:
    """What the file itself says of its run: settings, versions, and the inputs by hash."""
    if not subject.origin:
        return
    yield "## Training"
    rows = [("steps", f"{subject.origin['step']:,}")] if isinstance(subject.origin.get("step"), int) else []
    for values in _mappings(subject.origin.get("settings")):
        rows += [(key, str(value)) for key, value in values.items()]
    for key, value in (subject.origin.get("versions") or {}).items():
        rows.append((key, str(value)))
    rows += [(f"{text}, SHA-256", str(subject.origin[key])) for key, text in _HASHES.items() if subject.origin.get(key)]
    yield _table(("", ""), rows)


def _mappings(groups: Any) -> Iterator[Mapping[str, Any]]:
    for values in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(values, Mapping):
            yield values


def _files(subject: Subject) -> Iterator[str]:
    yield (
        f"`{subject.artifact}` and the safetensors hold the same weights; `SHA256SUMS` has the checksum of every file "
        "(`sha256sum -c SHA256SUMS`)."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

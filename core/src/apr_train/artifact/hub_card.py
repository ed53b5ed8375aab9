"""The card of a publication: front matter as the Hugging Face Hub reads it, then what a person wants to know."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from apr_train.artifact.card import Card, Use, code
from apr_train.artifact.convert import Conversion
from apr_train.artifact.provenance import hub_license, spdx_expression
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.checkpoint.reference import ReferenceLoss
from apr_train.errors import ConfigError
from apr_train.family.certificate import standing
from apr_train.run.metrics import Metrics
from apr_train.run.record import Record
from apr_train.run.samples import Sample

SUMS = "SHA256SUMS"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_DATASET = re.compile(r"https://(?:huggingface\.co|hf\.co)/datasets/([\w.-]+(?:/[\w.-]+)?)/?")
_MOST_RESULTS = 12
_PROVENANCE = {
    "license": "licence",
    "data_source": "training data",
    "data_license": "licence of the data",
    "author": "author",
    "version": "version",
    "source": "made from",
}
_HASHES = {"init": "started from the weights", "corpus": "corpus", "tokenizer": "tokenizer"}


@frozen(kw_only=True)
class HubNames:
    """What the card says on the Hub's behalf that the file cannot know.

    Raises:
        ConfigError: a name that the Hub could not have.
    """

    base_model: str | None = None
    """`organisation/name` of the model that this one was made from."""
    datasets: tuple[str, ...] = ()
    """Names of the data sets that it was trained on."""
    languages: tuple[str, ...] = ()
    """Codes such as `en`, or `code`."""

    def __attrs_post_init__(self) -> None:
        named = {"--base-model": (self.base_model,) if self.base_model is not None else (), "--dataset": self.datasets}
        for option, values in named.items():
            for value in values:
                if not _HUB_ID.fullmatch(value):
                    raise ConfigError("not a name on the Hub", where=option, expected="organisation/name", found=repr(value))


@frozen(kw_only=True)
class Publication:
    """A model that is published, with everything that its card tells."""

    title: str
    artifact: str
    """File name of the `.apr` in the folder."""
    conversion: Conversion = field(repr=False)
    names: HubNames
    origin: Mapping[str, Any] = field(repr=False)
    """What the file says of the run that made it; empty if nothing."""
    reference: ReferenceLoss | None = None
    """The loss of the `.apr` on the package's text."""
    exact: bool = True
    """Whether the safetensors have the same values, so that it is theirs too."""
    record: Record | None = field(repr=False)
    """That run up to the step of the file, if the file still lies in the run's folder."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Licence, data, author and so on."""
        return self.conversion.header.provenance

    @property
    def is_decoder(self) -> bool:
        """Whether the model continues text; an encoder fills gaps."""
        return self.conversion.family.info.kind == "decoder"

    @property
    def task(self) -> str:
        """The Hub's pipeline tag."""
        return "text-generation" if self.is_decoder else "fill-mask"

    @property
    def datasets(self) -> tuple[str, ...]:
        """Data sets on the Hub: as named, or the data source itself if it is the address of one."""
        found = _HUB_DATASET.fullmatch(str(self.provenance.get("data_source", "")))
        return self.names.datasets or ((found[1],) if found else ())

    @property
    def measured(self) -> tuple[Metrics, ...]:
        """The run's lines with a validation."""
        return self.record.measured if self.record is not None else ()

    @property
    def sample(self) -> Sample | None:
        """What the run's model wrote at the step of the file."""
        samples = self.record.samples if self.record is not None else ()
        return next((sample for sample in samples if sample.step == self.origin["step"]), None)


def card_of(publication: Publication) -> Card:
    """The card of a publication: no path, no clock, so that the same file gives the same card."""
    return Card(
        title=publication.title,
        front_matter=front_matter(publication),
        description=str(publication.provenance.get("description") or ""),
        about=_about(publication),
        use=_use(publication),
        results=_thinned(publication.measured),
        own_held_out=bool(publication.record is not None and publication.record.settings.get("data.val_data")),
        sample=publication.sample,
        training=list(_training(publication.origin)) if publication.origin else (),
        files=f"{code(publication.artifact)} and the safetensors hold the same weights; `{SUMS}` has the checksum of every "
        f"file (`sha256sum -c {SUMS}`).",
    )


def front_matter(publication: Publication) -> dict[str, Any]:
    """The Hub's keys; one that nothing is known for is left out."""
    license_, name = hub_license(spdx_expression(str(publication.provenance["license"]), where="license"))
    source = str(publication.provenance.get("source") or "")
    base = publication.names.base_model or (source if "/" in source and _HUB_ID.fullmatch(source) else None)
    index, reference = _model_index(publication), publication.reference
    found: dict[str, Any] = {
        "license": license_,
        "license_name": name,
        "author": publication.provenance.get("author"),
        "library_name": "transformers",
        "pipeline_tag": publication.task,
        "base_model": base,
        "datasets": list(publication.datasets),
        "language": list(publication.names.languages),
        "tags": ["apr", publication.conversion.family.info.model_type],
        "metrics": [metric["type"] for result in index for metric in result["metrics"]],
        REFERENCE: reference.to_metadata() if reference is not None and publication.exact else None,
        "model-index": [{"name": publication.title, "results": index}] if index else [],
    }
    return {key: value for key, value in found.items() if value not in (None, [])}


def _model_index(publication: Publication) -> list[dict[str, Any]]:
    if not publication.measured:
        return []
    line = publication.measured[-1]
    values = {"perplexity": line.perplexity, "accuracy": line.val_accuracy}
    metrics = [{"type": name, "value": value} for name, value in values.items() if value is not None]
    data = {
        "type": publication.datasets[0] if publication.datasets else "held-out",
        "name": str(publication.provenance["data_source"]),
        "split": "validation",
    }
    return [{"task": {"type": publication.task}, "dataset": data, "metrics": metrics}] if metrics else []


def _about(publication: Publication) -> dict[str, str]:
    conversion, provenance = publication.conversion, publication.provenance
    types = Counter(tensor.dtype for tensor in conversion.header.tensors.values())
    rows = {
        "architecture": f"{conversion.hf_class} ({conversion.family.name})",
        "parameters": f"{conversion.header.parameter_count:,}",
        "stored as": ", ".join(name for name, _ in types.most_common()),
        "vocabulary": f"{conversion.config.vocab_size:,} tokens",
    }
    rows |= {text: str(provenance[key]) for key, text in _PROVENANCE.items() if provenance.get(key)}
    if certified := standing(conversion.family.plugin).sentence:
        rows["family verified"] = certified
    reference = publication.reference
    return rows | ({} if reference is None else {"reference loss": _measured_on(reference)})


def _measured_on(reference: ReferenceLoss) -> str:
    return f"{reference.loss:.4f} nats a token in {reference.precision}, on apr-train's text {reference.text[:12]}"


def _use(publication: Publication) -> Use:
    auto = "AutoModelForCausalLM" if publication.is_decoder else "AutoModelForMaskedLM"
    option = "--prompt" if publication.is_decoder else "--fill-mask"
    command = f'apr-train generate {publication.artifact} {option} "…"'
    model = f'model = {auto}.from_pretrained("FOLDER")'
    if publication.conversion.header.tokenizer is None:
        python = f"from transformers import {auto}\n\n{model}"
        return Use(python=python, command=command, remark="There is no tokenizer in this folder.")
    tokenizer = 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    return Use(python=f"from transformers import {auto}, AutoTokenizer\n\n{model}\n{tokenizer}", command=command)


def _thinned(lines: Sequence[Metrics]) -> list[Metrics]:
    """First, last, and evenly between."""
    if len(lines) <= _MOST_RESULTS:
        return list(lines)
    return [lines[round(index * (len(lines) - 1) / (_MOST_RESULTS - 1))] for index in range(_MOST_RESULTS)]


def _training(origin: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the file itself says of its run: step, settings, versions, and the inputs by hash."""
    if isinstance(origin.get("step"), int):
        yield "steps done", f"{origin['step']:,}"
    settings = origin.get("settings")
    groups = settings.values() if isinstance(settings, Mapping) else ()
    for values in (*groups, origin.get("versions")):
        if isinstance(values, Mapping):
            yield from ((key, str(value)) for key, value in values.items())
    yield from ((f"{text}, SHA-256", str(origin[key])) for key, text in _HASHES.items() if origin.get(key))

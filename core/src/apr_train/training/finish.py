"""The end of a run: model.apr, the sample in samples.jsonl, the model card."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from itertools import takewhile
from pathlib import Path
from typing import cast

import attrs
from attrs import frozen
from torch import Tensor, nn

from apr_train.artifact.card import Card, markdown
from apr_train.atomic import write_file
from apr_train.checkpoint.given_name import given_name
from apr_train.data.chat.encode import encode_question
from apr_train.data.corpus import Part
from apr_train.data.fim_tokens import encode_texts, fim_tokens
from apr_train.data.objectives import Objective
from apr_train.data.source import described, sources_of
from apr_train.data.special_tokens import ending_ids, ids_of_prompt
from apr_train.errors import DataError
from apr_train.family.certificate import standing
from apr_train.model.device import Precision
from apr_train.model.generation import generate_tokens
from apr_train.model.protocol import LanguageModel
from apr_train.model.sharding import computes_on
from apr_train.preflight import Report
from apr_train.run.course import course
from apr_train.run.data_argument import DataArgument, of_argument
from apr_train.run.folder import CARD, METRICS, MODEL, SAMPLES, run_of
from apr_train.run.metrics import Metrics, mean_speed, read_metrics
from apr_train.run.preflight_file import PreflightRecord
from apr_train.run.progress import doing
from apr_train.run.samples import Sample, SampleKind, add_sample
from apr_train.run.settings import Settings
from apr_train.run.settings_file import to_toml
from apr_train.run.units import NOTHING
from apr_train.training.checkpoint import Weights
from apr_train.training.display import adapter_lines, parameters_of
from apr_train.training.examinee import examined
from apr_train.training.processes import Whole
from apr_train.training.setup import Prepared
from apr_train.training.writers import model_file

_PROVENANCE = ("license", "data_source", "data_license", "source", "author", "version")
DEFAULT_PROMPT = 'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""'
HOLE_PREFIX = f"{DEFAULT_PROMPT}\n    if n < 2:\n        return n\n    return "
HOLE_SUFFIX = "\n\n\nprint([fibonacci(n) for n in range(10)])\n"


def greedy(model: nn.Module, prompt: Sequence[int], *, length: int, ends: Collection[int], precision: Precision) -> list[int]:
    """The most likely tokens after the ids of a prompt, as many as `length` and the model's positions allow.

    Of a prompt that leaves too few positions, only the end is read. Nothing comes from the first of `ends` on.
    """
    language_model, device = cast(LanguageModel, model), computes_on(model)
    positions = language_model.config.usable_positions
    length = min(length, positions - 1)
    tokens = generate_tokens(
        language_model, prompt[length - positions :], length=length, choose=_most_likely, precision=precision, device=device
    )
    with examined(model):
        return list(takewhile(lambda index: index not in ends, tokens))


def _most_likely(logits: Tensor) -> int:
    return int(logits.argmax(-1))


def finish(prepared: Prepared, *, shown: bool = True) -> tuple[list[Metrics], Sample | None]:
    """Write the sample, MODEL_CARD.md and model.apr, or the adapter; returns all metrics, and the sample if there is one.

    The model is the last: where it stands at the run's last step, nothing is left to do (`run.resume`). `shown`: whether a
    terminal says what is being done.

    Raises:
        OutputError: one of them cannot be written.
    """
    run = prepared.run
    with run.result_weights():
        sample = _sample(prepared, shown=shown)  # of several processes, all write it together
        parameters = list(run.model.parameters())
        return run.processes.write_tensors(lambda whole: _written(prepared, sample, whole, shown=shown), parameters) or (
            [],
            None,
        )


def _written(prepared: Prepared, sample: Sample | None, whole: Whole, *, shown: bool) -> tuple[list[Metrics], Sample | None]:
    run = prepared.run
    lines = read_metrics(run.folder / METRICS)
    if sample is not None:
        add_sample(run.folder / SAMPLES, sample)
    write_file(run.folder / CARD, markdown(_card(prepared, lines, sample)).encode("utf-8"))
    with doing("writing the result", shown=shown):
        run.write_model(run.folder / run.result, Weights.of(run.model, whole), step=run.step)
    return lines, sample


def _sample(prepared: Prepared, *, shown: bool) -> Sample | None:
    run = prepared.run
    if run.objective.kind != "decoder" or not run.settings.run.sample_tokens:
        return None
    tokenizer, header = prepared.inputs.tokenizer, prepared.inputs.header
    try:
        asked = _asked(prepared)
    except DataError as error:  # the training is done: a run is not lost to its sample
        run.display.say(f"no sample: {error}")
        return None
    ends = asked.ends | ending_ids(tokenizer, {} if header is None else header.config)
    with doing("letting the model write", shown=shown):
        made = greedy(run.model, asked.ids, length=run.settings.run.sample_tokens, ends=ends, precision=run.precision)
    return Sample(step=run.step, prompt=asked.prompt, text=tokenizer.decode(made), kind=asked.kind, suffix=asked.suffix)


@frozen(kw_only=True)
class _Asked:
    """What a model is asked for at the end of its run."""

    prompt: str
    ids: Sequence[int]
    ends: Set[int] = frozenset()
    """Ids that end the answer, besides those that end a text."""
    kind: SampleKind = "text"
    suffix: str = ""


def _asked(prepared: Prepared) -> _Asked:
    """A question of the kind that the run has learnt: a turn, a hole (unless the user gives a prompt), or a text's beginning.

    Raises:
        DataError: the template makes nothing of the prompt.
    """
    objective, settings, tokenizer = prepared.run.objective, prepared.run.settings, prepared.inputs.tokenizer
    prompt = DEFAULT_PROMPT if settings.run.prompt is None else settings.run.prompt
    if objective.source_kinds[0] == "chat":
        ids, ends = encode_question(prompt, tokenizer, settings.data.chat_date)
        return _Asked(prompt=prompt, ids=ids, ends=ends, kind="chat")
    if "middle" in objective.special_tokens and settings.run.prompt is None:
        card = prepared.inputs.cleared.family.info.fim_tokens
        tokens = fim_tokens(tokenizer, card=card, setting=settings.data.fim_tokens, where="tokenizer")
        before, behind = encode_texts(tokenizer, [HOLE_PREFIX, HOLE_SUFFIX], tokens, parse_special=False)
        ids = [*tokenizer.start_ids, *tokens.question(before, behind)]
        return _Asked(prompt=HOLE_PREFIX, ids=ids, ends=tokens.ids, kind="hole", suffix=HOLE_SUFFIX)
    return _Asked(prompt=prompt, ids=ids_of_prompt(tokenizer, prompt))


def _card(prepared: Prepared, lines: list[Metrics], sample: Sample | None) -> Card:
    """The card of the run; files and folders are called by their names in it, wherever they lie on this machine."""
    names = _names(prepared)
    settings = _named_settings(prepared.run.settings, names)
    return Card(
        title=prepared.run.folder.name,
        about=_about(prepared, settings, lines),
        results=[line for line in lines if line.val_loss is not None],
        own_held_out=bool(settings.data.val_data),
        outcome=_outcome(prepared, mean_speed(lines)),
        sample=sample,
        preflight=_preflight(prepared.report, names),
        settings=to_toml(settings).strip(),
    )


def _about(prepared: Prepared, settings: Settings, lines: Sequence[Metrics]) -> dict[str, str]:
    run, inputs = prepared.run, prepared.inputs
    family = inputs.cleared.family
    inherited = model_file(inputs).provenance(run.folder / MODEL)
    rows = {
        "family": f"{settings.model.arch}, {family.distribution} {family.version}",
        "family verified": standing(family.plugin).sentence or "no certificate",
        "parameters": f"{parameters_of(run):,}",
        **adapter_lines(prepared),
        **course(lines, run.settings, run.best(), run.changes),
        "objective": run.objective.name,
        "attention": str(prepared.attention),
        "started from": settings.model.init or "fresh weights",
        "init hash": inputs.identity.init or NOTHING,
        "corpus": _described(settings, run.objective),
        **{f"source {part.name}": _source_row(prepared, part) for part in inputs.corpus.learnt if part.name is not None},
        "corpus hash": inputs.identity.corpus,
        "tokenizer": f"{inputs.tokenizer.size:,} tokens, {inputs.identity.tokenizer}",
    }
    return rows | {name: str(inherited.get(name) or "not stated") for name in _PROVENANCE}


def _described(settings: Settings, objective: Objective) -> str:
    """Where the text comes from, and what is held out of it."""
    return described(sources_of(settings.data, objective))


def _source_row(prepared: Prepared, part: Part) -> str:
    """A source of a mixture: its share, and what was read of it, which is another part once a source has ended."""
    stream, name = prepared.run.stream, part.name or ""
    read, epochs = stream.tokens_read, stream.epochs_read[name]
    of_all = read[name] / max(1, sum(read.values()))
    return f"weight {stream.shares[name]:.1%}: {read[name]:,} tokens read, which are {of_all:.1%}, {epochs:.2f} epochs"


def _outcome(prepared: Prepared, speed: float | None) -> str:
    run = prepared.run
    told = f", {speed:,.0f} tokens/s on {run.device}, attention {prepared.attention.backend.name}" if speed else ""
    return f"{run.step} steps, {run.tokens:,} tokens{told}."


def _preflight(report: Report, names: Mapping[str, str]) -> PreflightRecord:
    findings = tuple(attrs.evolve(item, subject=names.get(item.subject, item.subject)) for item in report.findings)
    facts = {name: names.get(value, value) if isinstance(value, str) else value for name, value in report.facts.items()}
    if report.tokenizer is not None:
        facts["tokenizer"] = {"size": report.tokenizer.size}  # where it was read from is a path
    return PreflightRecord(findings=findings, facts=facts)


def _names(prepared: Prepared) -> dict[str, str]:
    """Path → name: that of the file or folder, for a checkpoint of a run with the name of the run."""
    settings, file = prepared.run.settings, prepared.report.facts.get("file")
    data = settings.data
    text = [
        *(DataArgument.parse(item).path for item in (*data.data, *data.val_data)),
        *(path for item in data.source for path in item.path),
    ]
    paths = (file, settings.model.init, settings.model.tokenizer, settings.run.out, *text)
    return {path: _name(Path(path)) for path in paths if path is not None}


def _name(path: Path) -> str:
    run = run_of(path)
    return given_name(path) or str(path) if run is None else str(path.absolute().relative_to(run.parent))


def _named_settings(settings: Settings, names: Mapping[str, str]) -> Settings:
    model, data, run = settings.model, settings.data, settings.run
    init, tokenizer = (None if path is None else names[path] for path in (model.init, model.tokenizer))
    return attrs.evolve(
        settings,
        model=attrs.evolve(model, init=init, tokenizer=tokenizer),
        data=attrs.evolve(
            data,
            data=tuple(of_argument(item, names.__getitem__) for item in data.data),
            val_data=tuple(of_argument(item, names.__getitem__) for item in data.val_data),
            source=tuple(attrs.evolve(item, path=tuple(names[path] for path in item.path)) for item in data.source),
        ),
        run=attrs.evolve(run, out=names[run.out]),
    )

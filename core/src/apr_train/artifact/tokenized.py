"""Tokens made ahead of a run: the entries of the cache that it will find, what is told of them, and shards for others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import tomli_w
from attrs import field, frozen

from apr_train.artifact.targets import check_folder, check_own, mark
from apr_train.atomic import replace_folder, write_file
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.data.corpus import Corpus, EncodingWanted, Part, load_corpus
from apr_train.data.decided import decided_data, default_row
from apr_train.data.look import look_at
from apr_train.data.objectives import OBJECTIVES, Objective
from apr_train.data.protocols import StageProgress
from apr_train.data.shards import MOST_IDS, Ids, write_shard
from apr_train.data.source import objective_of
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.data.tokens import TokenFile
from apr_train.data.unchanged import Unchanged
from apr_train.errors import DataError, Finding, PreflightError
from apr_train.preflight.chat_rules import with_template
from apr_train.preflight.judge import preflight
from apr_train.preflight.opening import given_tokenizer, open_source, tied_header
from apr_train.preflight.report import PreflightInput, Report
from apr_train.preflight.token_rules import corpus_findings, no_tokenizer
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings, Settings

COMMAND = "tokenize"
_SETTINGS = "run.toml"
_TEXT = "text"
"""What a source without a name is called in the folder."""


@frozen(kw_only=True)
class Tokenized:
    """The tokens of a run's text, and what they were made with."""

    corpus: Corpus
    tokenizer: Tokenizer = field(repr=False)
    objective: Objective
    data: DataSettings
    """With nothing left open."""


def tokenize(settings: Settings, *, device: str, progress: StageProgress | None, say: Say) -> Tokenized:
    """Make the entries of the cache that a run with the same settings finds.

    Args:
        settings: a run's; `init` or `tokenizer` says how text becomes ids.
        device: that the run will have, by name: it decides the length of a row where the settings leave that open.
        progress: told of the bytes read, then of the bytes encoded.
        say: told of what was left out.

    Raises:
        PreflightError: with all that is wrong with model, tokenizer and text.
        AprTrainError: for what shows when the text is read.
    """
    look = look_at(settings.data, objective_of(settings), unchanged=Unchanged(believe=not settings.data.rehash))
    spec, report = _judged(settings, look.findings)
    objective = OBJECTIVES[report.objective] if report is not None and report.objective else objective_of(settings)
    config = None if report is None else report.config
    positions = None if config is None else config.usable_positions
    data = decided_data(settings.data, objective, device=device, positions=positions)
    tokenizer = build_tokenizer(spec)
    fim_tokens = report.family.info.fim_tokens if report is not None and report.family is not None else {}
    length = data.sequence_length or default_row(device)
    wanted = EncodingWanted(sequence_length=length, seed=settings.run.seed, fim_tokens=fim_tokens)
    corpus = load_corpus(data, tokenizer, objective=objective, options=wanted, progress=progress, notice=say)
    if config is not None and (findings := corpus_findings(corpus.max_token_id, config)):
        raise PreflightError(findings)
    return Tokenized(corpus=corpus, tokenizer=tokenizer, objective=objective, data=data)


def _judged(settings: Settings, found: Sequence[Finding]) -> tuple[TokenizerSpec, Report | None]:
    """The tokenizer, and what the preflight says of the model; without a model there is none.

    Raises:
        PreflightError: with `found` and all that is wrong.
    """
    model = settings.model
    given = None if model.tokenizer is None else given_tokenizer(model.tokenizer)
    if model.init is None and model.arch is None:
        spec, of_template = with_template(given, model.chat_template)
        _raise_errors([*found, *of_template, *([] if spec is not None else [no_tokenizer(needed=True)])])
        return _known(spec), None
    with ExitStack() as held:
        header = None
        if model.init is not None:
            header = tied_header(held.enter_context(open_source(model.init, model.rope_layout)))
        own = given if given is not None or header is None else header.tokenizer
        spec, of_template = with_template(own, model.chat_template)
        asked = PreflightInput.of(settings, header=header, tokenizer=spec, needs_tokenizer=True)
        report = preflight(asked)
    missing = [no_tokenizer(needed=True)] if spec is None and header is None else []
    _raise_errors([*found, *of_template, *missing, *report.findings])
    return _known(report.tokenizer), report


def _known(spec: TokenizerSpec | None) -> TokenizerSpec:
    if spec is None:
        raise PreflightError([no_tokenizer(needed=True)])
    return spec


def _raise_errors(findings: Sequence[Finding]) -> None:
    if any(finding.severity == "error" for finding in findings):
        raise PreflightError(findings)


@frozen(kw_only=True)
class Row:
    """What is told of one source."""

    source: str | None
    kind: str
    files: int
    documents: int
    """On both sides and on neither."""
    tokens: int
    """To learn from."""
    targets: int
    """Of these, what is learnt."""
    held_out: int
    """Tokens that are held out."""
    bytes_per_token: float | None
    """Of both sides; None for ids that somebody else made."""
    left_out: Mapping[str, int]
    """Documents that are on neither side, by the reason."""
    counted: Mapping[str, int]
    """What happened to documents when they were encoded, by the encoder's names."""


def rows_of(corpus: Corpus) -> list[Row]:
    """A row for each source, those that are only measured included."""
    sources: dict[tuple[str | None, bool], dict[str, Part]] = {}
    for side, parts in (("train", corpus.learnt), ("validation", corpus.held_out)):
        for part in parts:
            sources.setdefault((part.name, part.scan.sides == ("validation",)), {})[side] = part
    return [_row(sides) for sides in sources.values()]


def _row(sides: Mapping[str, Part]) -> Row:
    part = next(iter(sides.values()))
    scan, files = part.scan, {side: item.tokens for side, item in sides.items()}
    tokens, text = sum(map(len, files.values())), sum(item.text_bytes for item in files.values())
    counts = sum((Counter(item.counts) for item in files.values()), Counter())
    neither = {"copies of held-out text": scan.left_out, "held out elsewhere": scan.left_elsewhere}
    learnt = files.get("train")
    return Row(
        source=part.name,
        kind=part.source.kind,
        files=len(scan.files),
        documents=scan.documents,
        tokens=0 if learnt is None else len(learnt),
        targets=0 if learnt is None else _targets(learnt),
        held_out=len(files["validation"]) if "validation" in files else 0,
        bytes_per_token=text / tokens if text else None,
        left_out={name: number for name, number in neither.items() if number},
        counted=dict(counts),
    )


def _targets(tokens: TokenFile) -> int:
    return len(tokens) if tokens.learn is None else int(tokens.learn.sum())


@frozen(kw_only=True)
class Shown:
    """One document as a model reads it."""

    source: str | None
    number: int
    ids: tuple[int, ...]
    learn: tuple[bool, ...]
    """Which of them are targets."""
    parts: tuple[tuple[bool, str], ...]
    """The text of the ids, cut where targets begin and end."""


def documents_shown(tokenized: Tokenized, count: int) -> Iterator[Shown]:
    """The first documents of each source that is learnt from."""
    for part in tokenized.corpus.learnt:
        tokens = part.tokens
        places = zip(tokens.starts[:count].tolist(), tokens.stops[:count].tolist(), strict=True)
        for number, (begin, end) in enumerate(places):
            ids = tokens.ids[begin:end].tolist()
            learn = [True] * len(ids) if tokens.learn is None else tokens.learn[begin:end].tolist()
            parts = tuple((flag, tokenized.tokenizer.decode(piece)) for flag, piece in _runs(ids, learn))
            yield Shown(source=part.name, number=number, ids=tuple(ids), learn=tuple(learn), parts=parts)


def _runs(ids: Sequence[int], learn: Sequence[bool]) -> Iterator[tuple[bool, list[int]]]:
    begin = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or learn[place] != learn[begin]:
            yield learn[begin], list(ids[begin:place])
            begin = place


def write_tokens(tokenized: Tokenized, target: Path) -> list[str]:
    """Write shards, the tokenizer and the settings that use them: a folder, as a whole. Returns the names of the shards.

    Raises:
        DataError: for tokens of which some are no targets, which a shard cannot say.
        OutputError: when the folder is no earlier one of this command, or cannot be written.
    """
    parts = [("train", part) for part in tokenized.corpus.learnt] + [("held-out", part) for part in tokenized.corpus.held_out]
    for _, part in parts:
        _require_plain(part, tokenized.objective)
    sources = [path for _, part in parts for path in part.scan.files]
    check_folder(target, sources, COMMAND)
    with replace_folder(target) as folder:
        names = [name for side, part in parts for name in _write_part(folder, side, part, tokenized)]
        tokenized.tokenizer.save(folder / "tokenizer.json")
        write_file(folder / _SETTINGS, _settings(tokenized, target.absolute()).encode("utf-8"))
        mark(folder, COMMAND)
        if target.is_dir():
            check_own(target, COMMAND)  # again: writing takes its time
    return names


def _require_plain(part: Part, objective: Objective) -> None:
    if part.tokens.learn is None and "tokens" in OBJECTIVES[objective.predicts].source_kinds:
        return
    raise DataError(
        "a shard cannot say which of its tokens are targets",
        where="-o",
        expected="an objective of which every token is a target",
        found=objective.name,
        hint="Leave -o out: the tokens are in the cache, where the run finds them.",
    )


def _place(side: str, part: Part) -> str:
    return f"{part.name or _TEXT}/{side}"


def _write_part(folder: Path, side: str, part: Part, tokenized: Tokenized) -> list[str]:
    end = tokenized.objective.document_ends(tokenized.tokenizer).end
    names = []
    for number, documents in enumerate(_portions(part.tokens)):
        names.append(f"{_place(side, part)}/{number:05}.bin")
        (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        write_shard(folder / names[-1], _ends_first(part.tokens, documents, end), id_bytes=part.tokens.ids.itemsize)
    return names


def _portions(tokens: TokenFile) -> Iterator[range]:
    """Documents of which a shard has room."""
    begin = 0
    for number, stop in enumerate(tokens.stops.tolist()):
        if stop - int(tokens.starts[begin]) > MOST_IDS and number > begin:
            yield range(begin, number)
            begin = number
    yield range(begin, len(tokens.starts))


def _ends_first(tokens: TokenFile, documents: range, end: int) -> Iterator[Ids]:
    """The documents with their end of text in front, as llm.c has it, and not behind."""
    own = slice(documents.start, documents.stop)
    for begin, stop in zip(tokens.starts[own].tolist(), tokens.stops[own].tolist(), strict=True):
        ids = tokens.ids[begin:stop]
        yield np.concatenate(([end], ids[:-1] if ids[-1] == end else ids))


def _settings(tokenized: Tokenized, folder: Path) -> str:
    """A run's settings: the shards are its sources."""
    corpus, sources = tokenized.corpus, []
    for part in corpus.learnt:
        said = {
            "name": part.name or _TEXT,
            "path": [str(folder / _place("train", part))],
            "weight": None if part.source.weight is None else float(part.source.weight),
            "kind": "tokens",
            "max_epochs": part.source.max_epochs,
        }
        sources.append({name: value for name, value in said.items() if value is not None})
    held_out = [f"{part.name or _TEXT}={folder / _place('held-out', part)}" for part in corpus.held_out]
    model = {"tokenizer": str(folder / "tokenizer.json"), "objective": tokenized.objective.predicts}
    return tomli_w.dumps({"model": model, "data": {"val_data": held_out, "source": sources}})


def to_json(rows: Sequence[Row], shown: Sequence[Shown], corpus: Corpus) -> dict[str, Any]:
    """The JSON form of what is told."""
    return {
        "corpus_hash": corpus.hash,
        "sources": [attrs.asdict(row) for row in rows],
        "token_files": [str(part.tokens.path) for part in (*corpus.learnt, *corpus.held_out)],
        "documents": [attrs.asdict(item) for item in shown],
    }

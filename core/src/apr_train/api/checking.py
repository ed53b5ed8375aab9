"""`apr_train.check` and `apr_train.check_run`: the preflight of a file, and that of a run; nothing is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from apr_train.api.options import Place
from apr_train.api.setting_types import TrainSettings
from apr_train.api.training import Config, asked_by_name, judged
from apr_train.errors import ConfigError
from apr_train.run.objective_names import TrainingObjective
from apr_train.run.paths import user_path
from apr_train.run.settings import Settings
from apr_train.run.settings_file import with_values

if TYPE_CHECKING:
    from apr_train.checkpoint.header import Header, RopeRows, TokenizerSpec
    from apr_train.errors import Finding
    from apr_train.preflight import Report


def check(
    file: Place | None = None,
    *,
    arch: str | None = None,
    preset: str | None = None,
    vocab_size: int | None = None,
    tokenizer: Place | None = None,
    corpus: Place | None = None,
    objective: TrainingObjective | None = None,
    sequence_length: int | None = None,
    batch_size: int | None = None,
    rope_layout: RopeRows | None = None,
    device: str | None = None,
    precision: Literal["fp32", "bf16", "bf16-weights"] | None = None,
    attention: str | None = None,
    out: Place | None = None,
) -> Report:
    """Judge a checkpoint, or a run from scratch, as `apr-train check` does; faults are in the report, and are not raised.

    Imports torch only for a `device`.

    Args:
        file: .apr, safetensors, GGUF or a Hugging Face folder, of which the header is read; None: from scratch.
        arch: family; may be left out when exactly one installed family claims the checkpoint.
        preset: without a file: a preset of the family.
        vocab_size: without a file: another vocabulary than the preset's.
        tokenizer: a tokenizer.json, or a folder with one, instead of the checkpoint's own.
        corpus: an already tokenised corpus (a token file of the cache): its largest id.
        objective: what would be learnt; the family's first objective otherwise.
        sequence_length: tokens in a row.
        batch_size: rows in one pass, for the memory estimate; 1 otherwise.
        rope_layout: order of the rows of q and k, for a checkpoint that does not say.
        device: cpu or cuda: also choose the attention backend and estimate memory.
        precision: arithmetic of the run; fp32 otherwise.
        attention: a backend that is forced.
        out: folder that the run would write into.

    Raises:
        ConfigError: for a value that there is not; a preset or a vocabulary with a file.
    """
    if file is not None and (preset is not None or vocab_size is not None):
        raise ConfigError("a preset and its vocabulary are for a run from scratch, without a file", where="preset, vocab_size")
    given = {
        "arch": arch,
        "preset": preset,
        "vocab_size": vocab_size,
        "objective": objective,
        "sequence_length": sequence_length,
    }
    given |= {"batch_size": batch_size, "device": device, "precision": precision, "attention": attention}
    settings = {name: value for name, value in given.items() if value is not None}
    choices = {"objective": objective, "precision": precision, "rope_layout": rope_layout}
    with_values(Settings(), choices)  # refuses what is no choice
    target = None if out is None else Path(user_path(os.fspath(out)))
    return _checked(
        _text(file), tokenizer=_text(tokenizer), corpus=_text(corpus), rope_layout=rope_layout, out=target, **settings
    )


def _text(path: Place | None) -> str | None:
    return None if path is None else user_path(os.fspath(path))


def check_run(*, config: Config | None = None, resume: Place | None = None, **settings: Unpack[TrainSettings]) -> Report:
    """Judge a run before it starts, as `apr-train train --dry-run` does; takes what `train` takes.

    Raises:
        ConfigError: for a name or a value that there is not.
        RunError: when there is no run to go on with, or a setting differs that must not.
        PreflightError: when the source of the weights cannot be opened, with all that can be known without it.
    """
    return judged(*asked_by_name(config, resume, settings, where="check_run"))


def _checked(
    file: str | None, *, tokenizer: str | None, corpus: str | None, rope_layout: RopeRows | None, **settings: Any
) -> Report:
    """Open what can be opened, judge everything, and add what could not be opened."""
    import attrs

    from apr_train.family.registry import Registry
    from apr_train.preflight import PreflightInput, preflight

    header, unopened = _open(file, rope_layout)
    spec, unusable = _tokenizer(tokenizer)
    largest, damaged = _largest_id(corpus)
    if unopened:
        return _closed_report(unopened + unusable + damaged)
    asked = PreflightInput(registry=Registry.discover(), header=header, tokenizer=spec, corpus_max_id=largest, **settings)
    report = preflight(asked)
    return attrs.evolve(report, findings=(*unusable, *damaged, *report.findings))


def _open(file: str | None, rope_layout: RopeRows | None) -> tuple[Header | None, list[Finding]]:
    if file is None:
        return None, []
    from apr_train.checkpoint.open import open_checkpoint
    from apr_train.errors import FormatError
    from apr_train.preflight import opening_finding

    try:
        with open_checkpoint(file, verify=False, rope_layout=rope_layout) as checkpoint:
            return checkpoint.header, []
    except FormatError as error:
        return None, [opening_finding(error)]


def _tokenizer(path: str | None) -> tuple[TokenizerSpec | None, list[Finding]]:
    if path is None:
        return None, []
    from apr_train.checkpoint.open import open_tokenizer
    from apr_train.errors import AprTrainError
    from apr_train.preflight import tokenizer_finding

    try:
        return open_tokenizer(path), []
    except AprTrainError as error:
        return None, [tokenizer_finding(error)]


def _largest_id(path: str | None) -> tuple[int | None, list[Finding]]:
    if path is None:
        return None, []
    from apr_train.checkpoint.files import open_regular
    from apr_train.data.tokens import HEADER_SIZE, DamagedTokenFile, unpack_header
    from apr_train.errors import DataError, FormatError
    from apr_train.preflight import corpus_finding

    try:
        with open_regular(path) as file:
            return unpack_header(file.read(HEADER_SIZE)).max_token_id, []
    except (DamagedTokenFile, FormatError, OSError) as error:
        return None, [corpus_finding(DataError(f"not a tokenised corpus: {error}", where=path))]


def _closed_report(findings: list[Finding]) -> Report:
    """Nothing but the file's own fault can be known of a file that does not open."""
    from apr_train.preflight import Report, Skipped

    return Report(findings=tuple(findings), skipped=(Skipped("every rule about the file's content", "the file does not open"),))

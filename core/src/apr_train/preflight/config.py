"""The config that the run will use: from the file, or from a preset; every fault of it as findings."""

from __future__ import annotations

import attrs

from apr_train.config import ModelConfig
from apr_train.errors import AprTrainError, ConfigError
from apr_train.facade import Family
from apr_train.finding import Finding
from apr_train.header import Header
from apr_train.neutral import NOT_IMPLEMENTED

INCONSISTENT = "PREFLIGHT-005"
_UNIMPLEMENTED_FIELDS = ("hidden_act", "rope_scaling")


def config_from_file(family: Family, header: Header) -> tuple[ModelConfig | None, list[Finding]]:
    """The config as the file says it; nothing is defaulted, and every absent field is a finding."""
    try:
        return family.build_config(header=header), []
    except ConfigError as error:
        return None, list(error.findings) or [_refused(error, header.path)]
    except AprTrainError as error:
        return None, [_refused(error, header.path)]


def config_from_preset(
    family: Family, preset: str | None, vocab_size: int | None = None
) -> tuple[ModelConfig | None, list[Finding]]:
    """The preset's config, with another vocabulary if one is asked for."""
    try:
        config = family.build_config(preset=preset or family.info.default_preset)
        return (config if vocab_size is None else attrs.evolve(config, vocab_size=vocab_size)), []
    except AprTrainError as error:
        return None, [_refused(error, "--preset")]


def _refused(error: AprTrainError, where: str) -> Finding:
    field = (error.where or "").rpartition("Config.")[2]
    unimplemented = field.startswith(_UNIMPLEMENTED_FIELDS)
    return Finding(
        id=NOT_IMPLEMENTED if unimplemented else INCONSISTENT,
        where=f"{where} [{field}]" if field and field not in where else where,
        problem=error.problem,
        expected="" if error.expected is None else str(error.expected),
        found="" if error.found is None else str(error.found),
        hint=error.hint or "",
    )

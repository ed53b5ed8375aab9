"""The config that the run will use: from the file, or from a preset; every fault of it as findings."""

from __future__ import annotations

import attrs

from apr_train import rules
from apr_train.checkpoint.header import Header
from apr_train.errors import AprTrainError, ConfigError, Finding
from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family

_UNIMPLEMENTED_FIELDS = ("hidden_act", "rope_scaling")


def config_from_file(family: Family, header: Header) -> tuple[ModelConfig | None, list[Finding]]:
    """The config as the file says it; nothing is defaulted, and every absent field is a finding.

    A key that is only not implemented is left out after its finding, so that tensors and tokenizer are judged all the same.
    """
    findings: list[Finding] = []
    while True:
        try:
            return family.build_config(header=header), findings
        except ConfigError as error:
            findings += error.findings if error.finding.rule else [_refused(error, header.path)]
            name = _unimplemented(error)
        except AprTrainError as error:
            findings.append(_refused(error, header.path))
            name = None
        if name not in header.config:
            return None, findings
        header = attrs.evolve(header, config={key: value for key, value in header.config.items() if key != name})


def _field(error: AprTrainError) -> str:
    return error.finding.field or error.finding.subject


def _unimplemented(error: AprTrainError) -> str | None:
    return next((name for name in _UNIMPLEMENTED_FIELDS if _field(error).startswith(name)), None)


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
    name = _unimplemented(error)
    rule, field = (rules.PREFLIGHT_005, _field(error)) if name is None else (rules.PREFLIGHT_003, name)
    return attrs.evolve(error.finding, rule=rule, subject=where, field="" if field == where else field)


def absent_findings(header: Header, findings: list[Finding]) -> list[Finding]:
    """One line over the missing fields: metadata that is absent is a fault of its own."""
    names = [finding.field for finding in findings if finding.rule == rules.ARCH_003]
    if not names:
        return []
    return [
        Finding(
            rule=rules.INIT_005,
            subject=header.path,
            field="metadata",
            problem="the metadata is absent or incomplete" if header.config else "the metadata is absent",
            expected=f"values of {', '.join(names)}",
            found="none of them",
            hint="Re-import the file from its source.",
        )
    ]

"""Can adapters be trained as they are asked for: a base, targets that are there, peft. Torch-free."""

from __future__ import annotations

from importlib import util

from apr_train import rules
from apr_train.errors import Finding
from apr_train.family.adapter_sites import Site, Sites, sites_of
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family
from apr_train.preflight.report import ClearedFile, Report
from apr_train.run.option import flag
from apr_train.run.settings import LoraSettings, Settings

_TARGET = flag("lora_target")


def chosen_sites(settings: LoraSettings, family: Family, config: ModelConfig) -> tuple[Site, ...]:
    """The matrices that get an adapter: those of `--lora-target`, else the family's own, else all of the blocks."""
    return _sites(family, config).chosen(settings.lora_target or family.info.adapter_targets)


def _sites(family: Family, config: ModelConfig) -> Sites:
    return sites_of(family.map_tensor_names(config, Layout()))


def trained_parameters(settings: LoraSettings, family: Family, config: ModelConfig) -> int | None:
    """Numbers that a run with adapters trains; None for one that trains all weights."""
    if settings.lora_rank is None:
        return None
    return sum(site.size(settings.lora_rank) for site in chosen_sites(settings, family, config))


def adapter_findings(settings: Settings, report: Report) -> list[Finding]:
    """Everything that stands against the adapters that a run asks for; nothing for a run that asks for none."""
    lora = settings.lora
    if lora.lora_rank is None:
        return []  # what is set of adapters all the same is PREFLIGHT-030's
    findings = [*_base(settings), *_library()]
    if report.family is None or report.config is None:
        return findings
    sites = _sites(report.family, report.config)
    findings += sites.findings(lora.lora_target, _TARGET)
    if not lora.lora_target:
        findings += sites.findings(report.family.info.adapter_targets, f"{report.family.name}: FAMILY.adapter_targets")
    return [*findings, *_fresh(report)]


def _base(settings: Settings) -> list[Finding]:
    if settings.model.init is not None:
        return []
    return [
        Finding(
            rule=rules.ADAPTER_001,
            subject="--lora-rank",
            problem="adapters are trained on a base, and there is none",
            expected="--init BASE",
            found="a model from scratch",
            hint="Give the checkpoint that the adapters are for, or leave out --lora-rank.",
        )
    ]


def _library() -> list[Finding]:
    """Whether peft is there; it is looked for and not imported, which would take seconds."""
    if util.find_spec("peft") is not None:
        return []
    return [
        Finding(
            rule=rules.ADAPTER_001,
            subject="--lora-rank",
            problem="adapters need peft",
            expected="the package peft",
            found="not installed",
            hint="Install it: pip install 'apr-train[lora]'",
        )
    ]


def _fresh(report: Report) -> list[Finding]:
    """Of what a base lacks, nothing would be learnt: it is made up, and frozen."""
    plan = report.settled.plan if isinstance(report.settled, ClearedFile) else None
    if plan is None or not plan.fresh:
        return []
    return [
        Finding(
            rule=rules.ADAPTER_001,
            subject=str(report.facts.get("file", "--init")),
            problem="the base lacks a part that adapters do not train",
            expected=", ".join(plan.fresh_parameters),
            found="nothing of it in the file",
            hint="Train the whole model first, without --lora-rank.",
        )
    ]

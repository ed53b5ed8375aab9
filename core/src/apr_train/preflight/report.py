"""What a preflight is asked, and what it answers: plain data with a documented JSON form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attrs import Factory, asdict, evolve, field, frozen

from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.data.objectives import Objective
from apr_train.errors import Finding, PreflightError
from apr_train.family.config import ModelConfig
from apr_train.family.load_plan import LoadPlan
from apr_train.family.plugin import Family
from apr_train.family.registry import Registry
from apr_train.preflight.machine_rules import parameter_count
from apr_train.preflight.tensor_rules import TensorReport
from apr_train.run.objective_names import Packing, TrainingObjective
from apr_train.run.preflight_file import SCHEMA_VERSION
from apr_train.run.settings import LoraSettings, OptimizerSettings, Settings


@frozen(kw_only=True)
class PreflightInput:
    """Everything that can be judged before a tensor is read. What is None is not checked, except where said."""

    registry: Registry
    """The installed families."""
    header: Header | None = None
    """The checkpoint to start from; None: from scratch."""
    arch: str | None = None
    """Family by name; None: exactly one installed family must claim the file."""
    preset: str | None = None
    """From scratch: a preset of the family; None: its default."""
    vocab_size: int | None = None
    """From scratch: another vocabulary than the preset's."""
    objective: TrainingObjective | None = None
    """What is learnt; None: the family's first objective."""
    tokenizer: TokenizerSpec | None = None
    """Instead of the checkpoint's own."""
    sequence_length: int | None = None
    """Tokens in a row."""
    batch_size: int = 1
    """Rows in one pass, for the memory estimate."""
    corpus_max_id: int | None = None
    """Largest token id of an already tokenised corpus."""
    out: Path | None = None
    """Folder that the run will write into; it need not exist."""
    checkpoints: int = 3
    """Checkpoints that come on top of what lies there now, at any one time, the half-written one included."""
    device: str | None = None
    """`cpu` or `cuda`; None asks nothing of the machine and imports no torch."""
    precision: str = "fp32"
    """`fp32`, `bf16` (autocast over float32 weights) or `bf16-weights`."""
    attention: str | None = None
    """An attention backend that is forced."""
    lora: LoraSettings = Factory(LoraSettings)
    """The adapters that are trained in place of the weights; without a rank, none."""
    optimizer: OptimizerSettings = Factory(OptimizerSettings)
    """What decides how much state there is for each number that is trained, and which are not."""
    averages: bool = False
    """Whether the weights are averaged beside the trained ones."""
    processes: int = 1
    """How many share each pass, for the memory estimate."""
    pieces: int = 1
    """In how many pieces over them each parameter lies, for the same."""
    recompute: bool = False
    """Whether blocks are computed again on the way back, for the memory estimate."""
    keep_products: bool = False
    """Whether that leaves their matrix products out, for the same."""
    mask_probability: float = 1.0
    """Of an objective that hides tokens, the share of them, for the same."""
    document_mask: bool = False
    """Whether attention stays inside documents."""
    packing: Packing | None = None
    """How documents come into rows; None: the objective decides."""
    needs_tokenizer: bool = False
    """Whether a checkpoint without any tokenizer is an error, as for a training on text; else a warning."""

    @classmethod
    def of(cls, settings: Settings, **more: Any) -> PreflightInput:
        """What the settings of a run say of the model and of its rows, for the installed families, and more."""
        model, data = settings.model, settings.data
        return cls(
            registry=Registry.discover(),
            arch=model.arch,
            preset=model.preset,
            vocab_size=model.vocab_size,
            objective=model.objective,
            sequence_length=data.sequence_length,
            averages=settings.run.ema is not None,
            recompute=settings.run.recompute,
            keep_products=settings.run.recompute_keep == "products",
            mask_probability=data.mask_probability,
            document_mask=data.document_mask,
            packing=data.packing,
            **more,
        )


@frozen
class Skipped:
    """A group of rules that could not be computed, and what it waits for."""

    what: str
    because: str


@frozen(kw_only=True)
class Cleared:
    """A run that the preflight has nothing against: what it settled. From scratch, unless it is a `ClearedFile`."""

    family: Family
    objective: Objective
    config: ModelConfig
    tokenizer: TokenizerSpec | None
    """The checkpoint's or the one that was given; None: there is none."""


@frozen(kw_only=True)
class ClearedFile(Cleared):
    """A run that starts from a checkpoint."""

    plan: LoadPlan = field(repr=False)


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors before warnings, else in their order."""
    return tuple(sorted(findings, key=lambda finding: finding.severity != "error"))


@frozen(kw_only=True)
class Report:
    """All findings at once, and what was found out on the way, for the run that follows."""

    findings: tuple[Finding, ...]
    """Errors before warnings, else in the order of the rules."""
    explained: tuple[Finding, ...] = ()
    """Findings about single tensors that one of `findings` already explains; listed in JSON only."""
    skipped: tuple[Skipped, ...] = ()
    """What could not be judged, and why."""
    notes: tuple[str, ...] = ()
    """What of the text is left out, or taken for something."""
    facts: dict[str, Any] = Factory(dict)
    """What was checked, for a reader: family, sizes, tensors used, tie, tokenizer."""
    family: Family | None = None
    objective: TrainingObjective | None = None
    config: ModelConfig | None = None
    tokenizer: TokenizerSpec | None = None
    settled: Cleared | None = field(default=None, repr=False)
    """What a run would be made from; None while something of it is unknown. `cleared` asks whether the run may begin."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are only said."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def cleared(self) -> Cleared:
        """What a run is made from.

        Raises:
            PreflightError: with all findings, warnings included, if any is an error.
        """
        if self.errors or self.settled is None:
            raise PreflightError(self.findings)
        return self.settled

    def cleared_file(self) -> ClearedFile:
        """What is made from a checkpoint.

        Raises:
            PreflightError: as `cleared`, and for a run from scratch.
        """
        cleared = self.cleared()
        if not isinstance(cleared, ClearedFile):
            raise PreflightError(self.findings)
        return cleared

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that docs/preflight.md describes."""
        return {
            "schema": SCHEMA_VERSION,
            "ok": not self.errors,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [finding.to_dict() for finding in self.findings],
            "explained": [finding.to_dict() for finding in self.explained],
            "skipped": [asdict(item) for item in self.skipped],
            "notes": list(self.notes),
            "family": None if self.family is None else self.family.name,
            "objective": self.objective,
            "config": None if self.config is None else self.config.to_dict(),
            "facts": self.facts,
        }


def with_findings(report: Report, findings: Iterable[Finding]) -> Report:
    """The report with findings in front of its own, errors before warnings."""
    return evolve(report, findings=by_severity((*findings, *report.findings)))


def file_facts(header: Header) -> dict[str, Any]:
    """The file's own card."""
    return {
        "file": header.path,
        "format": header.format,
        "class": header.hf_class,
        "architecture": header.architecture,
        "dtypes": dict(sorted(Counter(tensor.dtype for tensor in header.tensors.values()).items())),
    }


def config_facts(config: ModelConfig | None, family: Family | None, tokenizer: TokenizerSpec | None) -> dict[str, Any]:
    """Family, sizes, and the tokenizer beside the embedding's rows."""
    facts: dict[str, Any] = {}
    if family is not None:
        facts["family"] = f"{family.name} ({family.distribution} {family.version})"
    if config is not None:
        facts["vocab_size"] = config.vocab_size
        facts["usable_positions"] = config.usable_positions
    if tokenizer is not None:
        facts["tokenizer"] = {"size": tokenizer.size, "origin": tokenizer.origin}
    return facts


def tensor_facts(header: Header | None, report: TensorReport | None) -> dict[str, Any]:
    """How many tensors are used, what is ignored or fresh and why, how the tie is known."""
    if header is None or report is None or report.plan is None or report.name_map is None:
        return {}
    plan = report.plan
    used = len(plan.loaded) + len(plan.duplicates) + len(plan.ignored)
    return {
        "parameters": parameter_count(report.name_map),
        "tensors": {
            "used": used,
            "total": len(header.tensors),
            "filled": len(plan.filled),
            "parameters": len(report.name_map.fills),
        },
        "ignored": {entry.checkpoint: entry.reason for entry in plan.ignored},
        "fresh": list(plan.fresh_parameters),
        "tie": {"value": header.tie.value, "reason": header.tie.reason},
        "rope_rows": header.rope_rows,
    }

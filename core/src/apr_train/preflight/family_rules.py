"""Whose file is it, and can that family be trained on it the way that was asked?"""

from __future__ import annotations

from apr_train import rules
from apr_train.checkpoint.header import Header, encoder_marks, kind_of
from apr_train.data.objectives import OBJECTIVES, Objective, keeps_documents_apart
from apr_train.data.packing import implies_document_mask
from apr_train.errors import Finding, PluginError
from apr_train.family.card import FamilyInfo
from apr_train.family.plugin import Family
from apr_train.family.registry import Registry
from apr_train.run.objective_names import Packing, TrainingObjective


def choose_family(registry: Registry, arch: str | None, header: Header | None) -> tuple[Family | None, list[Finding]]:
    """The family that was asked for, or the only one that claims the file; else a finding that says why not."""
    if arch is not None:
        try:
            return registry.family(arch), []
        except PluginError as error:
            return None, [error.under(rules.PREFLIGHT_001, "--arch")]
    if header is None:
        return None, [_nothing_to_choose_by(registry)]
    claimants = registry.claimants(header)
    if len(claimants) == 1:
        return claimants[0], []
    silent = [_silent(header)] if header.hf_class is None and header.architecture is None else []
    return None, [_not_one(registry, header, claimants), *silent]


def _silent(header: Header) -> Finding:
    return Finding(
        rule=rules.INIT_005,
        subject=header.path,
        field="architecture",
        problem="the metadata is absent or names no architecture",
        expected="a class or an architecture",
        found="nothing",
        hint="Re-import the file from its source, or add the keys.",
    )


def _nothing_to_choose_by(registry: Registry) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_001,
        subject="--arch",
        problem="without a file there is nothing to tell the family by",
        expected=f"one of {', '.join(registry.names()) or 'no installed family'}",
        found="nothing",
        hint="Give --arch.",
    )


def _not_one(registry: Registry, header: Header, claimants: list[Family]) -> Finding:
    answers = [_answer(family.info, header, family in claimants) for family in registry.families()]
    answers += [f"{fault.name}: broken ({fault.reason})" for fault in registry.broken()]
    several = "several families claim this file" if claimants else "no installed family claims this file"
    return Finding(
        rule=rules.PREFLIGHT_001,
        subject=header.path,
        problem=f"{several} ({_identity(header)})",
        expected="exactly one",
        found="; ".join(answers) or "no family is installed",
        hint="Give --arch." if claimants else "Install the family's plugin, or name one with --arch.",
    )


def _answer(info: FamilyInfo, header: Header, claims: bool) -> str:
    if claims:
        return f"{info.name}: mine"
    if kind_of(header) not in (None, info.kind):
        return f"{info.name}: not mine (the tensors are {with_article(str(kind_of(header)))}'s, I am {with_article(info.kind)})"
    return f"{info.name}: not mine (I take {', '.join(_accepted(info))})"


def _accepted(info: FamilyInfo) -> list[str]:
    return list(dict.fromkeys((*info.hf_classes, info.model_type, *info.gguf_architectures)))


def with_article(kind: str) -> str:
    """`decoder` → `a decoder`, `encoder` → `an encoder`."""
    return f"an {kind}" if kind.startswith("e") else f"a {kind}"


def _identity(header: Header) -> str:
    return f"class {header.hf_class or 'not given'}, architecture {header.architecture or 'not given'}"


def encoder_findings(header: Header, family: Family | None, objective: TrainingObjective) -> list[Finding]:
    """An encoder's tensors in the decoder-only causal trainer, whichever families are installed."""
    if kind_of(header) != "encoder" or not (
        OBJECTIVES[objective].kind == "decoder" or (family and family.info.kind == "decoder")
    ):
        return []
    mark = encoder_marks(header.tensors)[0]
    what = header.hf_class or header.architecture or "an encoder of unknown class"
    return [
        Finding(
            rule=rules.ARCH_007,
            subject=header.path,
            problem="Encoder checkpoint in the decoder-only causal trainer",
            expected="a decoder: causal attention and rotary positions",
            found=f"{what} (it has {mark})",
            hint="Train it with --objective masked-lm and its own family, or start from a decoder.",
        )
    ]


def is_learnt_by(family: Family, objective: Objective) -> bool:
    """Whether the family's models predict what the objective learns."""
    return objective.predicts in family.info.objectives


def objective_findings(family: Family, objective: TrainingObjective) -> list[Finding]:
    """Only what the family's models predict."""
    if is_learnt_by(family, OBJECTIVES[objective]):
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_002,
            subject="--objective",
            problem=f"{family.name} ({with_article(family.info.kind)}) cannot be trained on this objective",
            expected=" or ".join(name for name, known in OBJECTIVES.items() if known.predicts in family.info.objectives),
            found=objective,
        )
    ]


def packing_findings(objective: Objective, packing: Packing | None) -> list[Finding]:
    """Documents share rows whole only where attention can keep them apart."""
    if not implies_document_mask(packing or objective.packing) or keeps_documents_apart(objective):
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_029,
            subject="--packing",
            problem=f"{objective.name} has no mask that keeps documents in a row apart",
            expected="concatenate",
            found=str(packing),
            hint="With --document-mask no row holds two documents; without it, rows are full and documents see each other.",
        )
    ]


def identity_findings(header: Header, info: FamilyInfo) -> list[Finding]:
    """The file's own class and architecture against the family that was asked for by name."""
    fields = (
        ("architectures", header.hf_class, info.hf_classes),
        ("model_type", header.architecture, (info.model_type, *info.gguf_architectures)),
    )
    if all(found is None for _, found, _ in fields):
        return [_foreign(header, info, "architecture", "nothing: the metadata is silent", fields[0][2] + fields[1][2])]
    return [
        _foreign(header, info, name, found, expected)
        for name, found, expected in fields
        if found is not None and found not in expected
    ]


def _foreign(header: Header, info: FamilyInfo, name: str, found: str, expected: tuple[str, ...]) -> Finding:
    return Finding(
        rule=rules.INIT_005,
        subject=header.path,
        field=name,
        problem=f"the metadata does not say that this is a {info.name} file",
        expected=" or ".join(dict.fromkeys(expected)),
        found=found,
        hint="Take the family that the file belongs to, or re-import the file from its source.",
    )

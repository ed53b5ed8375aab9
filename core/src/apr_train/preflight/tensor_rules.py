"""The file's tensors against the family's name map: both sets, shapes, dtypes, tie, order of the RoPE rows."""

from __future__ import annotations

import math

import attrs
from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.dtypes import FLOATS
from apr_train.checkpoint.header import Header
from apr_train.checkpoint.tie import HEAD_NAMES, tie_contradiction
from apr_train.errors import AprTrainError, Finding
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.load_plan import LoadPlan, plan_load
from apr_train.family.name_map import Fill, IgnoreRule, NameMap, Tied
from apr_train.family.plugin import Family
from apr_train.preflight.size_rules import Contradictions, compare_sizes, template_of

_QUANTISED = ("Q", "IQ", "TQ", "APR_Q", "MXFP")


@frozen(kw_only=True)
class TensorReport:
    """What the name map found in the file."""

    layout: Layout
    name_map: NameMap | None = None
    plan: LoadPlan | None = None
    findings: tuple[Finding, ...] = ()
    explained: tuple[Finding, ...] = ()


def tensor_report(header: Header, family: Family, config: ModelConfig | None) -> TensorReport:
    """Match every tensor; without a config only the metadata's sizes are compared, by the default preset's map."""
    layout, name_map, refused = _name_map(header, family, config)
    if name_map is None:
        return TensorReport(layout=layout, findings=refused)
    sizes = compare_sizes(header, name_map.rules)
    findings = (*refused, *rope_row_findings(header, family))
    if config is None:
        return TensorReport(layout=layout, findings=(*sizes.findings, *findings))
    return _matched(header, layout, name_map, sizes, findings)


def _name_map(header: Header, family: Family, config: ModelConfig | None) -> tuple[Layout, NameMap | None, tuple[Finding, ...]]:
    """The family's map; if it refuses only the order of the rows, that is a finding and the names are still checked."""
    layout = family.info.layout_of(header)
    try:
        known = config or family.build_config(preset=family.info.default_preset)
        return layout, family.map_tensor_names(known, layout), ()
    except AprTrainError as error:
        refused = tuple(_no_map(header, finding) for finding in error.findings)
        if refused[0].rule != rules.PREFLIGHT_008 or layout.rope_rows == "split-half":
            return layout, None, refused
    other = attrs.evolve(layout, rope_rows="split-half")
    return other, family.map_tensor_names(known, other), refused


def _matched(
    header: Header, layout: Layout, name_map: NameMap, sizes: Contradictions, others: tuple[Finding, ...]
) -> TensorReport:
    plan = plan_load(name_map, header.tensors, where=header.path)
    tie = tie_findings(header, plan)
    left, explained = _without_explained(header, name_map, plan, sizes, tie)
    findings = (*sizes.findings, *left, *tie, *dtype_findings(header, plan), *others)
    return TensorReport(layout=layout, name_map=name_map, plan=plan, findings=findings, explained=explained)


def _no_map(header: Header, fault: Finding) -> Finding:
    part = fault.field or fault.subject or "tensor names"
    return attrs.evolve(fault, rule=fault.rule or rules.INIT_007, subject=header.path, field=part)


def _without_explained(
    header: Header, name_map: NameMap, plan: LoadPlan, sizes: Contradictions, tie: list[Finding]
) -> tuple[list[Finding], tuple[Finding, ...]]:
    """Take out what one wrong metadata field (or a wrong tie flag) already explains."""
    corrected = {**name_map.sizes, **sizes.sizes}
    left: list[Finding] = []
    explained: list[Finding] = []
    for finding in plan.findings:
        name = finding.field
        caused = _fits_corrected(header, name_map, name, corrected) or _beyond_layers(name, name_map, sizes)
        caused = caused or (bool(tie) and name in HEAD_NAMES)
        (explained if caused else left).append(finding)
    return left, tuple(explained)


def _fits_corrected(header: Header, name_map: NameMap, name: str, corrected: dict[str, int]) -> bool:
    """Whether a misshapen tensor has exactly the shape that the file's real sizes give."""
    if name not in header.tensors or name not in name_map.by_checkpoint or corrected == dict(name_map.sizes):
        return False
    rules = {rule.checkpoint: rule for rule in name_map.rules if not isinstance(rule, IgnoreRule)}
    rule = rules.get(name) or rules.get(template_of(name))
    if rule is None:
        return False
    shape = header.tensors[name].shape
    return shape == tuple(_value(symbol, corrected) for symbol in rule.shape)


def _value(symbol: str, sizes: dict[str, int]) -> int:
    """A symbol that contradicts as a whole (a product) has its own entry; else the product of its factors."""
    return sizes[symbol] if symbol in sizes else math.prod(sizes[name] for name in symbol.split("*"))


def _beyond_layers(name: str, name_map: NameMap, sizes: Contradictions) -> bool:
    """Missing layers of a file that has fewer than its metadata says, or the unused ones of a file that has more."""
    layers = sizes.sizes.get("num_hidden_layers")
    if layers is None or template_of(name) == name:
        return False
    number = int(name[len(template_of(name).partition("{layer}")[0]) :].partition(".")[0])
    return template_of(name) in {rule.checkpoint for rule in name_map.rules} and number >= min(layers, name_map.num_layers)


def tie_findings(header: Header, plan: LoadPlan) -> list[Finding]:
    """A tie flag that the tensor index contradicts; a head that a base-model file may lack is no contradiction."""
    words = tie_contradiction(header)
    if words is None or any(entry.checkpoint in HEAD_NAMES for entry in plan.fresh):
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_007,
            subject=header.path,
            field="tie_word_embeddings",
            problem=words,
            expected="a flag and a tensor index that agree",
            found=f"tie_word_embeddings {str(header.tie.value).lower()}",
            hint="Correct the flag in the metadata, or re-import the file from its source.",
        )
    ]


def dtype_findings(header: Header, plan: LoadPlan) -> list[Finding]:
    """Weights are floats, or blocks that can be dequantised."""
    entries: tuple[Fill | Tied, ...] = (*plan.loads, *plan.duplicates)
    used = [header.tensors[entry.checkpoint] for entry in entries]
    return [
        Finding(
            rule=rules.PREFLIGHT_006,
            subject=header.path,
            field=tensor.name,
            problem="not a type that weights can be loaded from",
            expected=f"{', '.join(FLOATS)}, or a block-quantised type",
            found=tensor.dtype,
        )
        for tensor in used
        if tensor.dtype not in FLOATS and not tensor.dtype.startswith(_QUANTISED)
    ]


def rope_row_findings(header: Header, family: Family) -> list[Finding]:
    """The order of the rows of q and k must be known: a wrong one still trains, only worse."""
    if header.rope_rows is not None or family.info.kind != "decoder":
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_008,
            subject=header.path,
            field="rope_type",
            problem="the file does not say in which order the rows of q and k are",
            expected="split-half (Hugging Face) or adjacent (llama.cpp's Llama)",
            found="nothing",
            hint="Say it with --rope-layout: split-half if the file came from safetensors, adjacent if from GGUF.",
        )
    ]


def provisional_tie(header: Header) -> Header:
    """The header with an undecided tie taken as tied: names and shapes are the same, the load compares the bytes."""
    if header.tie.value is not None:
        return header
    return attrs.evolve(header, tie=attrs.evolve(header.tie, value=True))

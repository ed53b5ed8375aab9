"""The file's tensors against the family's name map and the metadata: both sets, sizes, shapes, dtypes, tie, order of RoPE rows.

One wrong number in the metadata makes every tensor's shape wrong; told per tensor, the cause drowns. The name map's
symbolic shapes say which field each dimension stands for, so the tensors vote on every field.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from attrs import Factory, define, frozen

from apr_train import rules
from apr_train.checkpoint.dtypes import FLOATS
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.tie import HEAD_NAMES, tie_contradiction
from apr_train.errors import AprTrainError, Finding
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.load_plan import LoadPlan, plan_load
from apr_train.family.name_map import NameMap
from apr_train.family.name_rules import EXPERTS, IgnoreRule, Rule
from apr_train.family.plugin import Family
from apr_train.family.rule_index import Match, RuleIndex
from apr_train.family.sizes import Shape, evaluate, names_in, solved

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
    sizes = compare_sizes(header, name_map.rules, name_map.sizes if config is not None else {})
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
    index = RuleIndex(name_map.rules)
    left: list[Finding] = []
    explained: list[Finding] = []
    for finding in plan.findings:
        name = finding.field
        match = index.find(name)
        caused = match is not None and (
            _fits_corrected(header, name_map, name, match, corrected) or _beyond(match, name_map, sizes)
        )
        caused = caused or (bool(tie) and name in HEAD_NAMES)
        (explained if caused else left).append(finding)
    return left, tuple(explained)


def _fits_corrected(header: Header, name_map: NameMap, name: str, match: Match, corrected: dict[str, int]) -> bool:
    """Whether a misshapen tensor has exactly the shape that the file's real sizes give."""
    if name not in header.tensors or name not in name_map.by_checkpoint or corrected == dict(name_map.sizes):
        return False
    shape = header.tensors[name].shape
    return any(shape == tuple(_value(symbol, corrected) for symbol in _shape(rule)) for rule in match.rules)


def _shape(rule: Rule) -> Shape:
    """The symbolic shape of a rule's tensor in the file; empty where any shape will do."""
    return () if isinstance(rule, IgnoreRule) else rule.checkpoint_shape


def _value(symbol: str, sizes: dict[str, int]) -> int:
    """A symbol that contradicts as a whole (a product, a sum) has its own entry; else what it comes to."""
    return sizes[symbol] if symbol in sizes else evaluate(symbol, sizes)


def _beyond(match: Match, name_map: NameMap, sizes: Contradictions) -> bool:
    """Missing layers or experts of a file that has fewer than its metadata says, or the unused ones of one that has more."""
    ends = ((match.layer, LAYERS, name_map.num_layers), (match.expert, EXPERTS, name_map.sizes.get(EXPERTS, 0)))
    return any(
        number is not None and name in sizes.sizes and number >= min(sizes.sizes[name], stated) for number, name, stated in ends
    )


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
    used = [header.tensors[name] for name in (*plan.loaded, *(entry.checkpoint for entry in plan.duplicates))]
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
    if header.rope_rows is not None or family.info.kind != "decoder" or family.info.never_permuted:
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


LAYERS = "num_hidden_layers"


@define
class Votes:
    """What the tensors say a field is: value → how many dimensions say so, and one of the tensors."""

    counts: Counter[int] = Factory(Counter)
    witness: dict[int, TensorInfo] = Factory(dict)

    def add(self, value: int, tensor: TensorInfo) -> None:
        """One dimension of one tensor."""
        self.counts[value] += 1
        self.witness.setdefault(value, tensor)

    def winner(self) -> int | None:
        """The value of more than half of the dimensions."""
        value, count = self.counts.most_common(1)[0]
        return value if 2 * count > self.counts.total() else None


@frozen(kw_only=True)
class Contradictions:
    """Fields in which metadata and tensors differ."""

    findings: tuple[Finding, ...]
    sizes: Mapping[str, int]
    """What the tensors have, for the symbols in contradiction (`num_hidden_layers` among them) and what follows from them."""


def compare_sizes(header: Header, table: Iterable[Rule], sizes: Mapping[str, int] | None = None) -> Contradictions:
    """Compare every symbol of the shapes in a family's table with the file's tensors.

    A product or a sum of several names is compared as a whole: which of them is wrong is said by the tensors that have that
    name alone. `sizes` are those of the config that was made of the metadata, for what follows from other fields there.
    """
    index, known = RuleIndex(table), sizes or {}
    matches = [(tensor, match) for name, tensor in header.tensors.items() if (match := index.find(name)) is not None]
    votes = _votes(matches)
    declared = _declared(header.config, known)
    wrong: dict[str, int] = {}
    for symbol, vote in sorted(votes.items(), key=lambda item: _depth(item[0])):  # products last: they follow from the rest
        value, stated = vote.winner(), _stated(symbol, declared)
        if value is None or stated is None or value == stated:
            continue
        if _depth(symbol) > 1 and value == _stated(symbol, _declared({**header.config, **wrong}, known)):
            continue
        wrong[symbol] = value
    findings = [_finding(header, symbol, value, declared, votes[symbol].witness[value]) for symbol, value in wrong.items()]
    for name, numbers in ((LAYERS, [match.layer for _, match in matches]), (EXPERTS, [match.expert for _, match in matches])):
        found = max((number + 1 for number in numbers if number is not None), default=0)
        stated = declared.get(name)
        if found and stated is not None and found != stated and name not in wrong:
            wrong[name] = found
            findings.append(_count_finding(header, name, found, stated))
    derived = _declared({**header.config, **wrong}, known) if wrong else {}
    head_dim = {"head_dim": derived["head_dim"]} if "head_dim" in derived else {}
    return Contradictions(findings=tuple(findings), sizes=head_dim | wrong)


def _votes(matches: list[tuple[TensorInfo, Match]]) -> dict[str, Votes]:
    """What each dimension of each tensor says of its symbol; a number stands for itself and is asked nothing."""
    votes: dict[str, Votes] = defaultdict(Votes)
    for tensor, match in matches:
        shapes = {_shape(rule) for rule in match.rules}
        for shape in shapes:
            if len(shape) == len(tensor.shape):
                for symbol, size in zip(shape, tensor.shape, strict=True):
                    name, value = solved(symbol, size) or (symbol, size)
                    if names_in(name):
                        votes[name].add(value, tensor)
    return votes


def _depth(symbol: str) -> int:
    """How many names and numbers a symbolic size is made of."""
    return symbol.count("*") + symbol.count("+") + 1


def _declared(config: Mapping[str, Any], known: Mapping[str, int]) -> dict[str, int]:
    """The metadata's sizes; a head's width and the number of kv heads follow from others where they are not given.

    What neither says is as in `known`.
    """
    sizes = {key: value for key, value in config.items() if isinstance(value, int) and not isinstance(value, bool)}
    hidden, heads = sizes.get("hidden_size"), sizes.get("num_attention_heads")
    if hidden and heads and hidden % heads == 0:
        sizes.setdefault("head_dim", hidden // heads)
    if heads:
        sizes.setdefault("num_key_value_heads", heads)
    return {**known, **sizes}


def _stated(symbol: str, sizes: Mapping[str, int]) -> int | None:
    return evaluate(symbol, sizes) if all(name in sizes for name in names_in(symbol)) else None


def _finding(header: Header, symbol: str, value: int, declared: Mapping[str, int], witness: TensorInfo) -> Finding:
    factors = " and ".join(f"{name} {declared.get(name)}" for name in names_in(symbol))
    return Finding(
        rule=rules.INIT_005,
        subject=header.path,
        field=symbol,
        problem="the metadata contradicts the tensors",
        expected=f"{value}, as in the tensors ({witness.name} is {list(witness.shape)})",
        found=f"{_stated(symbol, declared)} in the metadata" + (f" ({factors})" if _depth(symbol) > 1 else ""),
        hint="Nothing is reshaped, cut or padded: re-import the file from its source.",
    )


def _count_finding(header: Header, name: str, found: int, stated: int) -> Finding:
    return Finding(
        rule=rules.INIT_005,
        subject=header.path,
        field=name,
        problem="the metadata contradicts the tensors",
        expected=f"{found}, as in the tensors",
        found=f"{stated} in the metadata",
        hint="The file is incomplete, or its metadata is another model's.",
    )

"""The sizes that the metadata declares against the sizes that the tensors have, field by field.

One wrong number in the metadata makes every tensor's shape wrong; told per tensor, the cause drowns. The name map's
symbolic shapes say which field each dimension stands for, so the tensors vote on every field.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import Factory, define, frozen

from apr_train import rules
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.errors import Finding
from apr_train.family.name_map import IgnoreRule, Rule

_NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")


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


def compare_sizes(header: Header, rules: Iterable[Rule]) -> Contradictions:
    """Compare every symbol of the rules' shapes with the file's tensors."""
    rules = tuple(rules)
    votes = _votes(header.tensors, rules)
    declared = _declared(header.config)
    wrong: dict[str, int] = {}
    for symbol, vote in sorted(votes.items(), key=lambda item: item[0].count("*")):  # products last: they follow from the rest
        value, stated = vote.winner(), _product(symbol, declared)
        if value is None or stated is None or value == stated:
            continue
        if "*" in symbol and value == _product(symbol, _declared({**header.config, **wrong})):
            continue
        wrong[symbol] = value
    findings = [_finding(header, symbol, value, declared, votes[symbol].witness[value]) for symbol, value in wrong.items()]
    layers = _layers(header.tensors, rules)
    stated = declared.get("num_hidden_layers")
    if layers and stated is not None and layers != stated:
        wrong["num_hidden_layers"] = layers
        findings.append(_layer_finding(header, layers, stated))
    derived = _declared({**header.config, **wrong}) if wrong else {}
    head_dim = {"head_dim": derived["head_dim"]} if "head_dim" in derived else {}
    return Contradictions(findings=tuple(findings), sizes=head_dim | wrong)


def template_of(name: str) -> str:
    """The tensor's name with its first number replaced by `{layer}`."""
    return _NUMBER.sub("{layer}", name, count=1)


def _votes(tensors: Mapping[str, TensorInfo], rules: tuple[Rule, ...]) -> dict[str, Votes]:
    by_name = {rule.checkpoint: rule for rule in rules if not isinstance(rule, IgnoreRule)}
    votes: dict[str, Votes] = defaultdict(Votes)
    for name, tensor in tensors.items():
        rule = by_name.get(name) or by_name.get(template_of(name))
        if rule is None or len(rule.shape) != len(tensor.shape):
            continue
        for symbol, size in zip(rule.shape, tensor.shape, strict=True):
            votes[symbol].add(size, tensor)
    return votes


def _declared(config: Mapping[str, Any]) -> dict[str, int]:
    """The metadata's sizes; a head's width and the number of kv heads follow from others where they are not given."""
    sizes = {key: value for key, value in config.items() if isinstance(value, int) and not isinstance(value, bool)}
    hidden, heads = sizes.get("hidden_size"), sizes.get("num_attention_heads")
    if hidden and heads and hidden % heads == 0:
        sizes.setdefault("head_dim", hidden // heads)
    if heads:
        sizes.setdefault("num_key_value_heads", heads)
    return sizes


def _product(symbol: str, sizes: Mapping[str, int]) -> int | None:
    factors = [sizes.get(name) for name in symbol.split("*")]
    return None if None in factors else math.prod(factor for factor in factors if factor is not None)


def _layers(tensors: Mapping[str, TensorInfo], rules: tuple[Rule, ...]) -> int:
    """How many layers the tensors have, by the largest number in a per-layer name."""
    templates = {rule.checkpoint for rule in rules if "{layer}" in rule.checkpoint}
    numbers = [found.group() for name in tensors if (found := _NUMBER.search(name)) and template_of(name) in templates]
    return max((int(number) + 1 for number in numbers), default=0)


def _finding(header: Header, symbol: str, value: int, declared: Mapping[str, int], witness: TensorInfo) -> Finding:
    factors = " and ".join(f"{name} {declared.get(name)}" for name in symbol.split("*"))
    stated = _product(symbol, declared)
    return Finding(
        rule=rules.INIT_005,
        subject=header.path,
        field=symbol,
        problem="the metadata contradicts the tensors",
        expected=f"{value}, as in the tensors ({witness.name} is {list(witness.shape)})",
        found=f"{stated} in the metadata" + (f" ({factors})" if "*" in symbol else ""),
        hint="Nothing is reshaped, cut or padded: re-import the file from its source.",
    )


def _layer_finding(header: Header, layers: int, stated: int) -> Finding:
    return Finding(
        rule=rules.INIT_005,
        subject=header.path,
        field="num_hidden_layers",
        problem="the metadata contradicts the tensors",
        expected=f"{layers}, as in the tensors",
        found=f"{stated} in the metadata",
        hint="The file is incomplete, or its metadata is another model's.",
    )

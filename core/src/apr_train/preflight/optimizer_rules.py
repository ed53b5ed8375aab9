"""Which parameters a run's groups are about, by the names that they have in the model and in a file. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

from attrs import Factory, frozen

from apr_train import rules
from apr_train.errors import Finding
from apr_train.family.adapter_sites import sites_of
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import Tied
from apr_train.family.plugin import Family
from apr_train.preflight.adapter_rules import chosen_sites
from apr_train.preflight.report import Report
from apr_train.run.settings import GroupSettings, LoraSettings, Settings
from apr_train.suggest import ClosestTensor, closest

Names = Mapping[str, tuple[str, ...]]
"""A parameter that a run could train → all its names: the model's, and those of Hugging Face's files."""


@frozen(kw_only=True)
class ParameterGroups:
    """What is known of a model's parameters beside their shapes."""

    of: Mapping[str, GroupSettings] = Factory(dict)
    """Parameter → the first of the run's groups that matches it; the others have none."""
    routers: frozenset[str] = frozenset()
    """Modules that choose or weigh experts."""

    @property
    def frozen(self) -> frozenset[str]:
        """Parameters that stay as they are."""
        return frozenset(name for name, group in self.of.items() if group.frozen)


def parameter_groups(settings: Settings, family: Family, config: ModelConfig) -> ParameterGroups:
    """The groups of a run that the preflight has nothing against."""
    groups, name_map = settings.optimizer.group, family.map_tensor_names(config, Layout())
    members = _members(groups, _names(settings.lora, family, config))
    of = {name: group for group, names in zip(groups, members, strict=True) for name in names}
    return ParameterGroups(of=of, routers=sites_of(name_map).routers)


def frozen_parameters(groups: Sequence[GroupSettings], family: Family, config: ModelConfig) -> int:
    """Numbers of a model that its groups freeze; all weights are trained otherwise."""
    name_map = family.map_tensor_names(config, Layout())
    return sum(math.prod(name_map.parameters[name]) for name in frozen_names(groups, family, config))


def frozen_names(groups: Sequence[GroupSettings], family: Family, config: ModelConfig) -> frozenset[str]:
    """Parameters of a model that its groups freeze."""
    if not any(group.frozen for group in groups):
        return frozenset()
    members = _members(groups, _names(LoraSettings(), family, config))
    return frozenset(name for group, names in zip(groups, members, strict=True) if group.frozen for name in names)


def _names(lora: LoraSettings, family: Family, config: ModelConfig) -> Names:
    if lora.lora_rank is not None:
        sites = chosen_sites(lora, family, config)
        return {name: (name, file_name) for site in sites for name, file_name in site.adapter_names.items()}
    name_map = family.map_tensor_names(config, Layout())
    found = {name: [name, *(edge.checkpoint for edge in edges)] for name, edges in name_map.fills.items()}
    for entry in name_map.entries:
        if isinstance(entry, Tied):
            found[entry.parameter].append(entry.checkpoint)
    return {name: tuple(dict.fromkeys(called)) for name, called in found.items()}


def _members(groups: Sequence[GroupSettings], names: Names) -> list[list[str]]:
    """The parameters of each group: a parameter is of the first one that matches it."""
    left, members = dict(names), []
    for group in groups:
        members.append([name for name, called in left.items() if _matches(group, called)])
        left = {name: called for name, called in left.items() if not _matches(group, called)}
    return members


def _matches(group: GroupSettings, called: Iterable[str]) -> bool:
    return group.pattern is not None and any(fnmatchcase(name, group.pattern) for name in called)


def optimizer_findings(settings: Settings, report: Report) -> list[Finding]:
    """Everything that stands against a run's groups of parameters (OPTIMIZER-001)."""
    groups, settled = settings.optimizer.group, report.settled
    findings = [finding for number, group in enumerate(groups) for finding in _of_itself(number, group)]
    if not groups or settled is None or not (names := _names(settings.lora, settled.family, settled.config)):
        return findings  # what there are no parameters for is told elsewhere
    members = _members(groups, names)
    for number, (group, found) in enumerate(zip(groups, members, strict=True)):
        if group.pattern is not None and not found:
            findings.append(_matches_nothing(number, group.pattern, names))
    left = set(names).difference(*(found for group, found in zip(groups, members, strict=True) if group.frozen))
    return findings if left else [*findings, _all_frozen(len(names))]


def _of_itself(number: int, group: GroupSettings) -> list[Finding]:
    """What is wrong with a group whatever the model is."""
    changes = [name for name, value in (("lr", group.lr), ("weight_decay", group.weight_decay)) if value is not None]
    if group.pattern is None:
        return [_finding(number, "pattern", "a group without a pattern", expected='such as pattern = "*.bias"', found="none")]
    if group.frozen and changes:
        return [
            _finding(
                number,
                changes[0],
                "what is frozen has no optimizer",
                expected=f"frozen or {changes[0]}",
                found="both",
                hint="Leave one out.",
            )
        ]
    if not group.frozen and not changes:
        hint = "Say what is otherwise for these parameters, or leave the group out."
        return [
            _finding(number, "", "a group that changes nothing", expected="lr, weight_decay or frozen", found="none", hint=hint)
        ]
    return []


def _matches_nothing(number: int, pattern: str, names: Names) -> Finding:
    """A pattern without any parameter, or whose parameters are all of earlier groups."""
    if any(fnmatchcase(name, pattern) for called in names.values() for name in called):
        return _finding(
            number,
            "pattern",
            "all that it matches is of an earlier group",
            expected="a parameter that no group before it has",
            found=pattern,
            hint="Put the narrower pattern first.",
        )
    near = _closest(pattern, names)
    hint = f"did you mean {near}?" if near else "A pattern is the whole name, with * for any part of it."
    return _finding(number, "pattern", "no parameter is called so", expected=_some(names), found=pattern, hint=hint)


def _closest(pattern: str, names: Names) -> str | None:
    """The pattern most like one that matches nothing: a name as far as it is written out, or a part of names between stars."""
    inner, every = pattern.strip("*."), sorted({name for called in names.values() for name in called})
    if inner and any(inner in name for name in every):
        return f"*{inner}*"
    if (name := ClosestTensor(every)(inner)) is not None:
        words, count = name.split("."), inner.count(".") + 1
        if not pattern.startswith("*"):
            return ".".join(words[:count]) + ("*" if len(words) > count else "")
        return "*" + ".".join(words[-count:])
    part = closest(inner, _parts(every))
    return None if part is None else f"*{part}*"


def _parts(names: Iterable[str]) -> list[str]:
    """`q_proj` and `self_attn.q_proj` of `layers.0.self_attn.q_proj.weight`: words of names, alone and in pairs."""
    words = [[word for word in name.split(".") if not word.isdecimal()] for name in names]
    pairs = {".".join(pair) for name in words for pair in pairwise(name)}
    return sorted({word for name in words for word in name} | pairs)


def _some(names: Names) -> str:
    shown = list(names)
    return f"such as {', '.join(shown[:2])} or {shown[-1]}"


def _all_frozen(count: int) -> Finding:
    return Finding(
        rule=rules.OPTIMIZER_001,
        subject="[[optimizer.group]]",
        problem="nothing is left to train",
        expected="a parameter that is not frozen",
        found=f"all {count} frozen",
        hint="Freeze less; to measure a model only, `apr-train eval`.",
    )


def _finding(number: int, field: str, problem: str, *, expected: str, found: str, hint: str = "") -> Finding:
    place = f"[[optimizer.group]] {number + 1}"
    return Finding(
        rule=rules.OPTIMIZER_001, subject=place, field=field, problem=problem, expected=expected, found=found, hint=hint
    )

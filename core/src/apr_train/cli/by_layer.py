"""Findings about the same tensor of many layers and experts, as one that counts them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from apr_train.errors import Finding

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_COUNTED = (("{layer}", "layers"), ("{expert}", "experts"))
"""What the numbers in a tensor's name count, in order."""


def by_layer(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that differ in the numbers of layer and expert only, as one that counts them."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        same = (finding.rule, finding.subject, finding.problem)
        masked = (_mask(finding.field), _mask(finding.expected), _mask(finding.found))
        groups.setdefault((*same, *masked), []).append(finding)
    return [_joined(group) for group in groups.values()]


def _mask(text: str) -> str:
    numbers = iter(_COUNTED)
    return _NUMBER.sub(lambda found: next(numbers, (found.group(),))[0], text)


def _joined(group: list[Finding]) -> Finding:
    first = group[0]
    if len(group) == 1:
        return first
    numbers = zip(*([int(number) for number in _NUMBER.findall(finding.field)] for finding in group), strict=True)
    ranges = [f"{words} {_ranges(found)}" for (_, words), found in zip(_COUNTED, numbers, strict=False)]
    return attrs.evolve(
        first,
        field=_mask(first.field),
        problem=f"{first.problem} ({', '.join([f'{len(group)} times', *ranges])})",
        expected=_mask(first.expected),
        found=_mask(first.found),
    )


def _ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 → `0–2, 5`."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("–".join(str(end) for end in part) for part in parts)

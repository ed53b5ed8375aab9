"""The rules about a tensor's name, in a file whose numbers of layers and experts are not known. Torch-free."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from attrs import frozen

from apr_train.family.name_rules import EXPERT, LAYER, Rule

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=\.)\d+$")


class RuleIndex:
    """Finds the rules that are about a tensor's name in a file, whatever its layer and expert.

    For files of which it is not known that they have the layers and experts that a map was expanded for.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._templates: dict[str, dict[str, list[Rule]]] = defaultdict(lambda: defaultdict(list))
        for rule in rules:
            self._templates[_masked(rule.checkpoint)][rule.checkpoint].append(rule)

    def find(self, name: str) -> Match | None:
        """The rules of a tensor's name, with its layer and expert; None for a name that no rule is about."""
        numbers = _NUMBER.findall(name)
        for template, found in self._templates.get(_masked(name), {}).items():
            holes = _HOLE.findall(template)
            pairs = list(zip(holes, numbers, strict=True))
            if all(hole in (LAYER, EXPERT) or hole == number for hole, number in pairs):
                at = {hole: int(number) for hole, number in pairs if hole in (LAYER, EXPERT)}
                return Match(template=template, rules=tuple(found), layer=at.get(LAYER), expert=at.get(EXPERT))
        return None


@frozen(kw_only=True)
class Match:
    """What `RuleIndex.find` found."""

    template: str
    rules: tuple[Rule, ...]
    layer: int | None
    expert: int | None


_HOLE = re.compile(r"(?<=\.)(?:\d+|\{layer\}|\{expert\})(?=\.)|(?<=\.)(?:\d+|\{layer\}|\{expert\})$")


def _masked(name: str) -> str:
    """A name or template with a mark for every number and placeholder between dots."""
    return _HOLE.sub("#", name)

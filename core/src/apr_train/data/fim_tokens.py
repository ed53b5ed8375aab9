"""The tokens around a hole in a text: which of a tokenizer's entries they are. Torch-free.

Source of the form: Bavarian et al. 2022 (arXiv:2207.14255). A model that was trained to fill holes has three tokens of
its own, one in front of the text before the hole, one in front of the text behind it, and one in front of the hole's own
text, which comes last. Published models spell them differently, and name them by what stands behind them or by what they
mean; `SPELLINGS` is by what stands behind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal

from attrs import frozen

from apr_train import rules
from apr_train.data.protocols import TokenizerLike
from apr_train.errors import ConfigError, Finding, TokenizerError

Role = Literal["prefix", "suffix", "middle", "end", "pad"]
NEEDED: tuple[Role, ...] = ("prefix", "suffix", "middle")
"""The roles without which no hole can be told."""
OPTIONAL: tuple[Role, ...] = ("end", "pad")
"""What ends a hole's text in place of the end of text, and what some models fill up with."""
SPELLINGS: tuple[Mapping[Role, str], ...] = (
    {"prefix": "<|fim_prefix|>", "suffix": "<|fim_suffix|>", "middle": "<|fim_middle|>", "pad": "<|fim_pad|>"},
    {"prefix": "<fim_prefix>", "suffix": "<fim_suffix>", "middle": "<fim_middle>", "pad": "<fim_pad>"},
    {"prefix": "<fim-prefix>", "suffix": "<fim-suffix>", "middle": "<fim-middle>", "pad": "<fim-pad>"},
    {"prefix": "<｜fim▁begin｜>", "suffix": "<｜fim▁hole｜>", "middle": "<｜fim▁end｜>"},
    {"prefix": "▁<PRE>", "suffix": "▁<SUF>", "middle": "▁<MID>", "end": "▁<EOT>"},
)
"""The spellings of published models. In the fourth, `hole` stands where the hole was, in front of the text behind it, and
`end` ends the question: it is the middle's."""
SETTING = "fim_tokens"
FLAG = "--fim-tokens"
_HINT = f"Name three entries of its vocabulary with {FLAG} 'PREFIX,SUFFIX,MIDDLE'."


@frozen(kw_only=True)
class FimTokens:
    """The ids of the tokens around a hole."""

    prefix: int
    """In front of the text before the hole."""
    suffix: int
    """In front of the text behind it."""
    middle: int
    """In front of the hole's own text."""
    end: int | None = None
    """Behind the hole's own text; None: the end of text is."""
    pad: int | None = None
    texts: tuple[str, ...] = ()
    """How they are written, for text that happens to spell one."""
    told_by: str = ""
    """Who names them: `--fim-tokens`, `the family's card` or `a known spelling`."""

    @property
    def ids(self) -> frozenset[int]:
        """All of them: none belongs into the text of a hole."""
        known = (self.prefix, self.suffix, self.middle, self.end, self.pad)
        return frozenset(index for index in known if index is not None)

    def question(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """What stands in front of a hole's own text, in the order PSM."""
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle]

    @property
    def roles(self) -> dict[str, int]:
        """Role → id, of those that stand in a row with a hole."""
        ends = {} if self.end is None else {"end": self.end}
        return {"prefix": self.prefix, "suffix": self.suffix, "middle": self.middle, **ends}


def fim_tokens(tokenizer: TokenizerLike, *, card: Mapping[str, str], setting: str | None, where: str) -> FimTokens:
    """The tokens around a hole: the user's, else the card's where the tokenizer has them, else a known spelling's.

    Args:
        tokenizer: gives the ids.
        card: `FamilyInfo.fim_tokens`.
        setting: `PREFIX,SUFFIX,MIDDLE`, if the user names them: entries of the vocabulary, or texts that are one token.
        where: the tokenizer, for a message.

    Raises:
        ConfigError: for a setting that is not three names.
        TokenizerError: FIM-001, when the tokenizer has none, or not the one that is named; FIM-002, when a name is several
            tokens, or two roles share one.
    """
    names, told_by = _names(tokenizer, card, setting)
    if names is None:
        expected = f"one of {', '.join(_firsts(card))}, and what goes with it"
        problem = "the tokenizer has no tokens around a hole that anyone here knows"
        raise TokenizerError(problem, where=where, rule=rules.FIM_001, expected=expected, found="none", hint=_HINT)
    found = {role: _ids(tokenizer, name, named=setting is not None) for role, name in names.items()}
    findings = [item for role, name in names.items() if (item := _fault(role, name, found[role], told_by, where)) is not None]
    ids = {role: index[0] for role, index in found.items() if len(index) == 1}
    findings += _shared(ids, where)
    if findings:
        raise TokenizerError.of(findings)
    texts = tuple(names[role] for role in ids)
    return FimTokens(**ids, texts=texts, told_by=told_by)


def parse_names(text: str) -> dict[Role, str]:
    """The three names in `PREFIX,SUFFIX,MIDDLE`.

    Raises:
        ConfigError: when they are not three.
    """
    names = text.split(",")
    if len(names) != len(NEEDED) or not all(names):
        expected = (
            "PREFIX,SUFFIX,MIDDLE: what stands before the text in front of a hole, before the text behind it, before its own"
        )
        raise ConfigError("not three names", where=f"{SETTING} ({FLAG})", expected=expected, found=repr(text))
    return dict(zip(NEEDED, names, strict=True))


def _names(tokenizer: TokenizerLike, card: Mapping[str, str], setting: str | None) -> tuple[Mapping[Role, str] | None, str]:
    """Role → name, and who says so."""
    if setting is not None:
        return parse_names(setting), FLAG
    of_card: dict[Role, str] = {role: card[role] for role in (*NEEDED, *OPTIONAL) if role in card}
    for names, told_by in ((of_card, "the family's card"), *((names, "a known spelling") for names in SPELLINGS)):
        if all(role in names and tokenizer.id(names[role]) is not None for role in NEEDED):
            return names, told_by
    return None, ""


def _firsts(card: Mapping[str, str]) -> list[str]:
    """The prefix tokens that were looked for."""
    of_card = [card["prefix"]] if "prefix" in card else []
    return list(dict.fromkeys([*of_card, *(names["prefix"] for names in SPELLINGS)]))


def _ids(tokenizer: TokenizerLike, name: str, *, named: bool) -> tuple[int, ...]:
    """The ids of a name: its own entry's; of a user's word that is no entry, those of the text."""
    own = tokenizer.id(name)
    if own is not None:
        return (own,)
    return tuple(tokenizer.encode_batch([name], parse_special=True)[0]) if named else ()


def _fault(role: Role, name: str, ids: Sequence[int], told_by: str, where: str) -> Finding | None:
    if len(ids) == 1 or (not ids and role in OPTIONAL):
        return None
    return Finding(
        rule=rules.FIM_002 if ids else rules.FIM_001,
        subject=where,
        field=role,
        problem=f"{name!r} of {told_by} is not one token",
        expected="one id",
        found=f"{len(ids)} ids: {', '.join(map(str, ids[:8]))}" if ids else "no such token",
        hint=_HINT,
    )


def _shared(ids: Mapping[Role, int], where: str) -> list[Finding]:
    """Of two roles with one id, the second."""
    seen: dict[int, Role] = {}
    findings = []
    for role, index in ids.items():
        other = seen.setdefault(index, role)
        if other != role and role in (*NEEDED, "end"):
            problem = f"the tokens of {other} and {role} are the same"
            expected = "an id of its own for each"
            findings.append(Finding(rule=rules.FIM_002, subject=where, problem=problem, expected=expected, found=str(index)))
    return findings


def encode_texts(tokenizer: TokenizerLike, texts: Sequence[str], tokens: FimTokens, *, parse_special: bool) -> list[list[int]]:
    """The ids of texts around and in holes, each apart; unless `parse_special`, text that spells one of `tokens` stays text.

    A tokenizer finds a token that is not marked as special wherever a text spells it: there the text is cut behind its first
    character.
    """
    found = tokenizer.encode_batch(texts, parse_special=parse_special)
    if parse_special:
        return found
    return [
        ids if tokens.ids.isdisjoint(ids) else _as_text(tokenizer, text, tokens) for text, ids in zip(texts, found, strict=True)
    ]


def _as_text(tokenizer: TokenizerLike, text: str, tokens: FimTokens) -> list[int]:
    inside = (f"(?<={re.escape(name[:1])})(?={re.escape(name[1:])})" for name in tokens.texts if len(name) > 1)
    pieces = [piece for piece in re.split("|".join(inside), text) if piece]
    return list(chain.from_iterable(tokenizer.encode_batch(pieces, parse_special=False)))

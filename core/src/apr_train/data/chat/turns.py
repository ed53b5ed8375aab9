"""Where the assistant's turns lie in the text of a conversation, for templates that do not mark them.

A turn begins where the template, given the messages before it, would let the model write, and ends with what the template
puts behind the assistant's text. Both are found by rendering the conversation up to the turn: a template that writes from
left to right gives a beginning of the whole. Where it writes an earlier turn in another way (thoughts that it drops once
another question follows), the strings that open and end a turn are looked for, as a probe of the template found them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import jinja2
from attrs import frozen

from apr_train.data.chat.environment import Span

Render = Callable[[Mapping[str, Any], bool], str]
"""The text of a conversation; True: with the beginning of the assistant's next turn at the end."""
_WORDS = ("quartz one", "basalt two", "feldspar three", "gneiss four")
"""What is said in the probe: words that no template has."""


MANY = 32
"""Turns from which on the strings that open and end them are looked for first: all beginnings would take a square of time."""


class UnclearTurns(Exception):
    """A template, or a conversation in it, whose turns cannot be told apart: the message says what was missed."""


@frozen(kw_only=True)
class TurnStrings:
    """How a template opens and ends the assistant's turns."""

    opening: str
    """What it writes for the assistant's next turn: `<|im_start|>assistant⏎`; empty where it writes nothing."""
    head: str
    """What stands of it in front of a turn that is there: a template may open a thought only in the former."""
    ending: str
    """What it writes behind the assistant's text, up to the last control token: `<|im_end|>`."""
    special: tuple[str, ...]
    """How the tokenizer's control tokens are written."""

    @property
    def control(self) -> bool:
        """Whether `ending` has a control token; without one nothing but white space may be the end of a turn."""
        return any(token in self.ending for token in self.special)


def turn_strings(render: Render, special: tuple[str, ...]) -> TurnStrings:
    """Learn from a probe how a template opens and ends turns.

    Args:
        render: renders by the template.
        special: how the tokenizer's control tokens are written, none of them empty.

    Raises:
        UnclearTurns: when the turns of the probe cannot be told apart.
    """
    messages = [{"role": ("user", "assistant")[n % 2], "content": word} for n, word in enumerate(_WORDS)]
    tools = _tools(messages, render)
    whole, short = (render({"messages": said, **tools}, False) for said in (messages, messages[:2]))
    places = [whole.find(word) for word in _WORDS]
    if places != sorted(places) or places[0] < 0 or any(whole.count(word) != 1 for word in _WORDS):
        raise UnclearTurns("what the user and the assistant say does not stand in the text, once and in its order")
    if short.count(_WORDS[1]) != 1:
        raise UnclearTurns("what the assistant says does not stand in the text of its turn")
    asked = {"messages": messages[:1], **tools}
    bare, open_ = render(asked, False), render(asked, True)
    opening = open_[len(bare) :] if open_.startswith(bare) else ""
    behind = (whole[places[1] + len(_WORDS[1]) : places[2]], short[short.find(_WORDS[1]) + len(_WORDS[1]) :])
    ending = _ending(*behind, special)
    head = _head(whole[: places[1]], bare, open_, opening)
    return TurnStrings(opening=opening, head=head, ending=ending, special=special)


def _tools(messages: Sequence[Mapping[str, Any]], render: Render) -> Mapping[str, Any]:
    """What the probe has beside its messages: an empty list of tools, where a template raises without it and only then."""
    without: dict[str, Any] = {"messages": messages}
    empty: dict[str, Any] = {"tools": []}
    if _rendered(without, len(messages), render, prompt=False) is not None:
        return {}
    return {} if _rendered(without | empty, len(messages), render, prompt=False) is None else empty


def _head(before: str, bare: str, open_: str, opening: str) -> str:
    """What of the opening stands in front of the assistant's text in the probe.

    Raises:
        UnclearTurns: when the text in front of the assistant's is not the opening that the model will be given.
    """
    if before.startswith(open_) and (open_ != bare or not before[len(open_) :].strip()):
        return opening
    if open_ == bare:
        raise UnclearTurns("add_generation_prompt makes no difference, and something stands in front of the assistant's text")
    stands = before[len(bare) :] if before.startswith(bare) else ""
    if stands and opening.startswith(stands):
        return stands
    raise UnclearTurns("what add_generation_prompt writes is not what stands in front of the assistant's text")


def _ending(followed: str, last: str, special: Sequence[str]) -> str:
    """What ends a turn whether another follows or not: up to its last control token, all of it if it has none.

    Raises:
        UnclearTurns: when the two have nothing in common.
    """
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(followed, last, strict=False))
    common = "".join(character for character, _ in pairs)
    stop = max((common.rfind(token) + len(token) for token in special if token in common), default=0)
    if not stop and last.strip() and common != last:
        raise UnclearTurns("the last turn ends in another way than one that is followed by the user's")
    return common[:stop] if stop else common


def assistant_spans(conversation: Mapping[str, Any], text: str, render: Render, strings: TurnStrings) -> list[Span]:
    """The parts of a conversation's text that the assistant wrote, the ends of its turns included, one for each turn.

    White space behind the control token that ends a turn is no part of it.

    Raises:
        UnclearTurns: when one of them cannot be told.
    """
    messages = conversation["messages"]
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if len(turns) > MANY and (found := _by_strings(text, len(turns), strings)):
        return found
    spans: list[Span] = []
    for number, place in enumerate(turns):
        earlier = spans[-1][1] if spans else 0
        begin = _begin(conversation, place, text, render, strings)
        if begin is None:
            begin = _nth_head(text, number, len(turns), strings)
        end = _end(conversation, place, text, begin, render, strings)
        if not earlier <= begin < end:
            raise UnclearTurns(f"turn {number + 1} of the assistant has no text of its own")
        spans.append((begin, end))
    return spans


def _by_strings(text: str, turns: int, strings: TurnStrings) -> list[Span]:
    """All turns by the strings that open and end them; none where these are no control tokens, or not as many as turns."""
    before, *parts = text.split(strings.head) if any(token in strings.head for token in strings.special) else [text]
    if len(parts) != turns or not strings.control or not all(strings.ending in part for part in parts):
        return []
    spans, place = [], len(before)
    for part in parts:
        begin = place + len(strings.head)
        spans.append((begin, begin + part.index(strings.ending) + len(strings.ending)))
        place = begin + len(part)
    return spans


def _begin(conversation: Mapping[str, Any], place: int, text: str, render: Render, strings: TurnStrings) -> int | None:
    """Where a turn begins, by the text of the messages before it; None where that is no beginning of the whole."""
    before = _rendered(conversation, place, render, prompt=True)
    if before is None:
        return None
    if strings.head != strings.opening and before.endswith(strings.opening):
        before = before.removesuffix(strings.opening) + strings.head
    return len(before) if text.startswith(before) else None


def _nth_head(text: str, number: int, turns: int, strings: TurnStrings) -> int:
    """Where a turn begins, by the string that opens one: as many of it must be there as there are turns.

    Raises:
        UnclearTurns: when there are more or less.
    """
    if not strings.head.strip() or text.count(strings.head) != turns:
        raise UnclearTurns(f"turn {number + 1} of the assistant does not begin where the messages before it end")
    parts = text.split(strings.head)
    return sum(map(len, parts[: number + 1])) + (number + 1) * len(strings.head)


def _end(conversation: Mapping[str, Any], place: int, text: str, begin: int, render: Render, strings: TurnStrings) -> int:
    """Where a turn ends: with the text of the messages up to it, or with the string that ends one.

    Raises:
        UnclearTurns: when neither is there.
    """
    last = place == len(conversation["messages"]) - 1
    upto = text if last else _rendered(conversation, place + 1, render, prompt=False)
    if upto is not None and text.startswith(upto) and len(upto) > begin:
        stripped = len(upto.rstrip())
        return stripped if upto[:stripped].endswith(strings.special) else len(upto)
    found = text.find(strings.ending, begin) if strings.control else -1
    if found < 0:
        raise UnclearTurns("a turn of the assistant does not end where the message behind it begins")
    return found + len(strings.ending)


def _rendered(conversation: Mapping[str, Any], count: int, render: Render, *, prompt: bool) -> str | None:
    """The text of the first messages; None where the template refuses so few of them."""
    try:
        return render({**conversation, "messages": conversation["messages"][:count]}, prompt)
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None

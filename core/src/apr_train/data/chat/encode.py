"""Rendered conversations as token ids, and which of them are targets.

The ids are those of the whole text, as transformers encodes it. A control token that a message spells is text all the same:
such a conversation is encoded between the template's own control tokens, where that changes no other id.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from attrs import field, frozen

from apr_train.checkpoint.dtypes import Array
from apr_train.data.chat.renderer import Habits, Renderer, Rendering
from apr_train.data.chat.template import template_of
from apr_train.data.conversations import Conversation
from apr_train.data.tokenizer import Tokenizer
from apr_train.run.objective_names import TrainOn

Places = list[tuple[int, int]]
"""For each id the characters that it stands for."""


@frozen(kw_only=True)
class EncodedChat:
    """A conversation as ids."""

    ids: list[int] = field(repr=False)
    learn: list[bool] = field(repr=False)
    """For each id whether it is a target."""
    turn_ends: list[int]
    """For each turn of the assistant the number of ids up to its end."""
    control: int = 0
    """How many control tokens that messages spell became just that."""


def encode_chats(
    renderings: Sequence[Rendering], tokenizer: Tokenizer, *, train_on: TrainOn, parse_special: bool
) -> list[EncodedChat]:
    """Encode conversations.

    Args:
        renderings: of conversations whose turns could be told apart, if only those are targets.
        tokenizer: whose template rendered them.
        train_on: which part is a target.
        parse_special: whether a control token that a message spells becomes that token.
    """
    whole = tokenizer.encode_places([rendering.text for rendering in renderings], parse_special=True)
    encoded = []
    for rendering, (ids, places) in zip(renderings, whole, strict=True):
        control = rendering.spelt
        if rendering.spelt and not parse_special:
            apart = None if rendering.apart is None else _apart(rendering.text, rendering.apart, tokenizer)
            if apart is not None:
                (ids, places), control = apart, 0
        begins, behinds = np.array(places, np.int64).reshape(-1, 2).T
        learn = _targets(rendering, begins, behinds, train_on)
        ends = [int((begins < end).sum()) for _, end in rendering.spans]
        encoded.append(EncodedChat(ids=ids, learn=learn, turn_ends=ends, control=control))
    return encoded


def encode_prompt(rendering: Rendering, tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation that the model is to go on with."""
    (encoded,) = encode_chats([rendering], tokenizer, train_on="all", parse_special=False)
    return encoded.ids


def ends_of_turn(tokenizer: Tokenizer, habits: Habits) -> frozenset[int]:
    """The id of the first control token that the template puts behind the assistant's text; none where it puts none there."""
    control = set(tokenizer.special_tokens.values())
    return frozenset([index for index in tokenizer.encode(habits.ending) if index in control][:1])


def encode_question(text: str, tokenizer: Tokenizer, date: str | None) -> tuple[list[int], frozenset[int]]:
    """The ids of a conversation of one turn that the model is to answer, and those that end its answer.

    Args:
        text: what the user says.
        tokenizer: with its template.
        date: what the template takes for today.

    Raises:
        TokenizerError: CHAT-001, when there is no template.
        DataError: when the template does not work.
    """
    with Renderer(template_of(tokenizer, date)) as renderer:
        rendering = renderer.prompt(Conversation([{"role": "user", "content": text}]))
        return encode_prompt(rendering, tokenizer), ends_of_turn(tokenizer, renderer.habits)


def _targets(rendering: Rendering, begins: Array, behinds: Array, train_on: TrainOn) -> list[bool]:
    """An id is a target when one of the characters that it stands for is; `begins` and `behinds`: where they are, `[ids]`."""
    if train_on == "all":
        return [True] * len(begins)
    learn = np.zeros(len(begins), np.bool_)
    for first, behind in rendering.spans if train_on == "assistant" else rendering.spans[-1:]:
        learn |= (begins < behind) & (behinds > first)
    flags: list[bool] = learn.tolist()
    return flags


def _apart(text: str, apart: str, tokenizer: Tokenizer) -> tuple[list[int], Places] | None:
    """The ids of a text whose control tokens are those of `apart` only; None where the tokenizer does not allow it.

    It does where `apart`, which spells no others, has the same ids as a whole and taken apart at its control tokens: a
    tokenizer that puts a space in front of every text, or strips white space beside a token, does not.
    """
    ((ids, places),) = tokenizer.encode_places([apart], parse_special=True)
    control = set(tokenizer.special_tokens.values())
    cuts = [(index, place) for index, place in zip(ids, places, strict=True) if index in control]
    edges = [0, *chain.from_iterable(place for _, place in cuts), len(text)]
    gaps = [(begin, end) for begin, end in list(pairwise(edges))[::2]]
    plain, wanted = (
        tokenizer.encode_places([source[begin:end] for begin, end in gaps], parse_special=False) for source in (apart, text)
    )
    if _joined(plain, gaps, cuts)[0] != ids:
        return None
    return _joined(wanted, gaps, cuts)


def _joined(
    parts: Sequence[tuple[list[int], Places]], gaps: Places, cuts: Sequence[tuple[int, tuple[int, int]]]
) -> tuple[list[int], Places]:
    """The ids of the texts between control tokens, with these, and the places of all in the whole text."""
    ids: list[int] = []
    places: Places = []
    for number, ((some, where), (begin, _)) in enumerate(zip(parts, gaps, strict=True)):
        ids += some
        places += [(first + begin, behind + begin) for first, behind in where]
        if number < len(cuts):
            index, place = cuts[number]
            ids.append(index)
            places.append(place)
    return ids, places

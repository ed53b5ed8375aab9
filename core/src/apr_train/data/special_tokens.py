"""The special tokens that the data path cannot do without, and how a prompt begins and a text ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from apr_train.data.protocols import TokenizerLike
from apr_train.data.tokenizer import Tokenizer
from apr_train.errors import DataError, TokenizerError

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")
"""How GPT-2, Qwen and SmolLM spell it, and Llama 3."""
_WHERE_NAMED = "tokenizer_config.json, in the same folder as tokenizer.json, says which token it is"
_BERTS_NAMES = {"bos": "cls", "eos": "sep"}
"""BERT's names of what stands at both ends of an encoder's row."""


@frozen(kw_only=True)
class DocumentEnds:
    """The ids that stand around each document in a token file."""

    start: tuple[int, ...] = ()
    """In front of it; none where rows begin with a bos of their own, and where the tokenizer puts nothing there."""
    end: int
    """Behind it."""


def decoder_ends(tokenizer: TokenizerLike) -> DocumentEnds:
    """The ends of a decoder's documents: the start as in `generate`, the end by `separator_id`.

    Raises:
        TokenizerError: when the tokenizer has no token to end a document with.
    """
    return DocumentEnds(start=tokenizer.start_ids, end=separator_id(tokenizer))


def separator_id(tokenizer: TokenizerLike) -> int:
    """The token that ends a decoder's documents: an end of text by name, else eos.

    A chat model's eos only ends a turn, while its end of text is still the one that separated documents when it was
    pretrained. An entry of the vocabulary that is merely spelt so, and no special token, is none: nothing ever ended in it.

    Raises:
        TokenizerError: when the tokenizer has neither.
    """
    for token in END_OF_TEXT:
        found = tokenizer.id(token)
        if found is not None and found in {*tokenizer.special_tokens.values(), *tokenizer.special_ids.values()}:
            return found
    return special_id(tokenizer, "eos", f"documents are separated by it, or by {' or '.join(END_OF_TEXT)}")


def encoder_end(tokenizer: TokenizerLike, name: str) -> int:
    """The id at one end of an encoder's rows: its `bos` or `eos`, else what BERT calls cls or sep.

    Raises:
        TokenizerError: when the tokenizer has neither.
    """
    known = name if name in tokenizer.special_ids else _BERTS_NAMES[name]
    if known in tokenizer.special_ids:
        return tokenizer.special_ids[known]
    return special_id(tokenizer, name, "an encoder's rows begin and end with them")


def special_id(tokenizer: TokenizerLike, name: str, why: str) -> int:
    """The id of a special token that the data path cannot do without.

    Raises:
        TokenizerError: when the tokenizer has none.
    """
    if name not in tokenizer.special_ids:
        found = ", ".join(sorted(tokenizer.special_ids)) or "no special token"
        hint = f"Give a tokenizer that has one with --tokenizer; {_WHERE_NAMED}."
        raise TokenizerError(f"the tokenizer has no {name} token: {why}", expected=name, found=found, hint=hint)
    return tokenizer.special_ids[name]


def never_masked(tokenizer: TokenizerLike) -> list[int]:
    """All ids that are no text: the tokens that are marked as special or named as bos, eos, …"""
    return sorted({*tokenizer.special_ids.values(), *tokenizer.special_tokens.values()})


class SpelledTokens:
    """Finds text that spells a special token."""

    def __init__(self, contents: Iterable[str]) -> None:
        """`contents`: how the special tokens are written."""
        groups: dict[str, list[str]] = {}
        for content in sorted(filter(None, contents), key=len, reverse=True):  # the longest first, as tokenizers find them
            groups.setdefault(content[:2], []).append(content)
        # One expression for each beginning: the search for a fixed string is fast, that among alternatives is not.
        self._expressions = [re.compile("|".join(map(re.escape, group))) for group in groups.values()]
        self._beginnings = list(groups)

    def count(self, text: str) -> int:
        """How many special tokens are spelt in a text."""
        pairs = zip(self._beginnings, self._expressions, strict=True)
        return sum(sum(1 for _ in spelt.finditer(text)) for beginning, spelt in pairs if beginning in text)


def ids_of_prompt(tokenizer: Tokenizer, prompt: str, *, parse_special: bool = True) -> list[int]:
    """The prompt's ids, with the bos in front that the tokenizer itself puts there, as in front of a document.

    `parse_special`: a special token that is spelt in a prompt is meant, unless the prompt is text of a corpus.

    Raises:
        DataError: when there is no token in it, or it is no Unicode text.
    """
    if not prompt:
        raise DataError("the prompt is empty", where="--prompt", expected="the start of a text")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError("the prompt is not UTF-8 text", where="--prompt", found=repr(prompt[:40])) from error
    # Not what comes behind the text: an eos there would end it before it began.
    ids = [*tokenizer.start_ids, *tokenizer.encode(prompt, parse_special=parse_special)]
    if not ids:
        raise DataError("no token is in the prompt", where="--prompt", found=repr(prompt[:40]))
    return ids


def ending_ids(tokenizer: Tokenizer, config: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end a text: eos of the tokenizer and of the metadata, and an end of text by name."""
    stated = config.get("eos_token_id")
    ids = set(stated if isinstance(stated, list) else [stated])
    ids |= {tokenizer.special_ids.get("eos"), *(tokenizer.id(token) for token in END_OF_TEXT)}
    return frozenset(index for index in ids if isinstance(index, int))

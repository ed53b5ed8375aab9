"""The special tokens that the data path cannot do without, and how a prompt begins and a text ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.data.protocols import TokenizerLike
from apr_train.data.tokenizer import Tokenizer
from apr_train.errors import DataError, TokenizerError

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")
"""How GPT-2, Qwen and SmolLM spell it, and Llama 3."""
_WHERE_NAMED = "tokenizer_config.json, in the same folder as tokenizer.json, says which token it is"


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


def separator_id(tokenizer: TokenizerLike) -> int:
    """The token that ends each document: end-of-text by its name, else eos, which in a chat model only ends a turn.

    Raises:
        TokenizerError: when the tokenizer has neither.
    """
    for token in END_OF_TEXT:
        if (found := tokenizer.id(token)) is not None:
            return found
    return special_id(tokenizer, "eos", f"documents are separated by it, or by {' or '.join(END_OF_TEXT)}")


def never_masked(tokenizer: TokenizerLike) -> list[int]:
    """All ids that are no text: the special tokens and the separator."""
    return sorted({*tokenizer.special_ids.values(), separator_id(tokenizer)})


def ids_of_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids, with the bos in front that the tokenizer itself puts there.

    Raises:
        DataError: when there is no token in it, or it is no Unicode text.
    """
    if not prompt:
        raise DataError("the prompt is empty", where="--prompt", expected="the start of a text")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError("the prompt is not UTF-8 text", where="--prompt", found=repr(prompt[:40])) from error
    plain = tokenizer.encode(prompt)
    around = tokenizer.encode(prompt, special=True)
    bos = tokenizer.special_ids.get("bos")
    # Not what comes behind the text: an eos there would end it before it began.
    ids = [bos, *plain] if bos is not None and around[: 1 + len(plain)] == [bos, *plain] else plain
    if not ids:
        raise DataError("no token is in the prompt", where="--prompt", found=repr(prompt[:40]))
    return ids


def ending_ids(tokenizer: Tokenizer, config: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end a text: eos of the tokenizer and of the metadata, and an end of text by name."""
    stated = config.get("eos_token_id")
    ids = set(stated if isinstance(stated, list) else [stated])
    ids |= {tokenizer.special_ids.get("eos"), *(tokenizer.id(token) for token in END_OF_TEXT)}
    return frozenset(index for index in ids if isinstance(index, int))

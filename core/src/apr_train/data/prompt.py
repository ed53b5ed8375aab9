"""How a text is given to a decoder, and which tokens end what it writes: the same for `generate` and for a run's sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.data.special_tokens import END_OF_TEXT
from apr_train.data.tokenizer import Tokenizer
from apr_train.errors import DataError


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

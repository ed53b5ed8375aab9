"""The special tokens that the data path cannot do without."""

from __future__ import annotations

from apr_train.data.protocols import TokenizerLike
from apr_train.errors import TokenizerError


def special_id(tokenizer: TokenizerLike, name: str, why: str) -> int:
    """The id of a special token that the data path cannot do without.

    Raises:
        TokenizerError: when the tokenizer has none.
    """
    if name not in tokenizer.special_ids:
        found = ", ".join(sorted(tokenizer.special_ids)) or "no special token"
        raise TokenizerError(f"the tokenizer has no {name} token: {why}", expected=name, found=found)
    return tokenizer.special_ids[name]


def separator_id(tokenizer: TokenizerLike) -> int:
    """The token that ends each document: end-of-text where it is known, else eos (a chat model's eos ends a turn).

    Raises:
        TokenizerError: when the tokenizer has neither.
    """
    if "end_of_text" in tokenizer.special_ids:
        return tokenizer.special_ids["end_of_text"]
    return special_id(tokenizer, "eos", "documents are separated by it")

"""The special tokens that the data path cannot do without."""

from __future__ import annotations

from apr_train.data.protocols import TokenizerLike
from apr_train.errors import TokenizerError

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")
"""How GPT-2, Qwen and SmolLM spell it, and Llama 3."""


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
    """The token that ends each document: end-of-text by its name, else eos, which in a chat model only ends a turn.

    Raises:
        TokenizerError: when the tokenizer has neither.
    """
    for token in END_OF_TEXT:
        if (found := tokenizer.id(token)) is not None:
            return found
    return special_id(tokenizer, "eos", "documents are separated by it")


def never_masked(tokenizer: TokenizerLike) -> list[int]:
    """All ids that are no text: the special tokens and the separator."""
    return sorted({*tokenizer.special_ids.values(), separator_id(tokenizer)})

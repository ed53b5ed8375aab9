"""The special tokens that the data path cannot do without."""

from __future__ import annotations

from apr_train.data.protocols import TokenizerLike
from apr_train.errors import TokenizerError

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

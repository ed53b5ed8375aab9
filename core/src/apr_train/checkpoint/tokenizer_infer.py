"""Which tokens of a byte-level vocabulary were added beside the merges, when the file does not say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from apr_train.checkpoint.tokenizer_json import PADDING
from apr_train.checkpoint.tokenizer_spec import AddedToken

CONTROL_LIKE = re.compile(r"<\|.+\|>|</?[a-z_]+>", re.DOTALL)
"""How published models spell control tokens: `<|im_start|>`, `<repo_name>`, `</s>`."""


def infer_added(vocabulary: Sequence[str], merges: Sequence[str], special_ids: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """Tokens of more than one symbol that no merge makes; special are those that look like control tokens.

    Padding rows (`[PAD7]`) are not tokens. A merge's result is the two parts without the space between them.
    """
    made = {merge.replace(" ", "", 1) for merge in merges}
    marked = set(special_ids.values())
    return tuple(
        AddedToken(id=index, content=token, special=index in marked or CONTROL_LIKE.fullmatch(token) is not None)
        for index, token in enumerate(vocabulary)
        if index in marked or (len(token) > 1 and token not in made and not PADDING.fullmatch(token))
    )

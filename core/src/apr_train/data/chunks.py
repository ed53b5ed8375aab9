"""Long documents in pieces that encode to the same tokens as the whole.

One long file would otherwise be encoded by one thread, with some hundred bytes of memory for each of its tokens. A cut is
made only after a newline, before something that is not white space, and only where the tokenizer itself confirms, on the
text around it, that the cut changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from apr_train.data.protocols import TokenizerLike

PIECE = 1 << 18
"""Characters of a piece, about."""
_WINDOW = 256
_ATTEMPTS = 8
_CUT = re.compile(r"\n(?=\S)")


def pieces(text: str, tokenizer: TokenizerLike, *, size: int = PIECE) -> Iterator[str]:
    """Consecutive pieces of a text of `size` characters or somewhat more; one piece when it has no safe cut."""
    begin = 0
    while len(text) - begin > 2 * size:
        cut = _safe_cut(text, begin + size, tokenizer)
        if cut is None:
            break
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _safe_cut(text: str, start: int, tokenizer: TokenizerLike) -> int | None:
    for attempt, match in enumerate(_CUT.finditer(text, start)):
        if attempt == _ATTEMPTS:
            return None
        cut = match.end()
        left, right = text[max(0, cut - _WINDOW) : cut], text[cut : cut + _WINDOW]
        whole, before, after = tokenizer.encode_batch([left + right, left, right])
        if whole == before + after:
            return cut
    return None

"""What the data path asks of a tokenizer and of whoever watches it: nothing more, so that tests can bring their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

StageProgress = Callable[[str, int, int], None]
"""Called with the stage (`read`, then `tokenise` unless the cache has the tokens), the bytes done, and the bytes in all."""

_STRIDE = 1 << 20


def byte_counter(progress: StageProgress | None, stage: str, total: int) -> Callable[[int], None]:
    """A function that is told how many more bytes are done, however few, and reports a megabyte at a time."""
    done = told = 0

    def count(more: int) -> None:
        nonlocal done, told
        done += more
        if progress is not None and (done - told >= _STRIDE or done == total):
            told = done
            progress(stage, done, total)

    return count


class TokenizerLike(Protocol):
    """A tokenizer as the data path sees it."""

    @property
    def size(self) -> int:
        """Largest id + 1, added tokens included."""
        ...

    @property
    def special_ids(self) -> Mapping[str, int]:
        """`bos`, `eos`, `pad`, `mask`, `unk` → id, as far as the source says."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides how text is encoded; part of the token cache's key."""
        ...

    def id(self, token: str) -> int | None:
        """The id of a token string; None if there is none."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without any special token added around it."""
        ...

"""The reference loss that a checkpoint holds: what it was measured on, and the number.

In an `.apr` it is one key of the metadata; in a folder with safetensors the same key of README.md's front matter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from attrs import asdict, frozen

from apr_train.errors import FormatError

KEY = "apr_train.reference"
"""The metadata key of `.apr`, and the key of front matter, under which it stands."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HINT = "apr-train eval FILE --reference --write measures it anew."


@frozen(kw_only=True)
class ReferenceLoss:
    """A model's mean loss on the package's reference text."""

    loss: float
    """Nats, mean over all targets."""
    text: str
    """SHA-256 of the text's bytes, lower-case hex."""
    ids: str
    """SHA-256 of the text's token ids as 64-bit little-endian integers, with what stands around a text."""
    sequence_length: int
    """Tokens in a row."""
    precision: str
    """How it was computed: a name that `--precision` takes."""

    def to_metadata(self) -> dict[str, Any]:
        """The value of the key."""
        return asdict(self)


def reference_of(metadata: Mapping[str, Any], path: object) -> ReferenceLoss | None:
    """The reference loss in some metadata; None if there is none.

    Raises:
        FormatError: the key holds something else.
    """
    value = metadata.get(KEY)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _damaged(path, KEY, "an object", value)
    loss = value.get("loss")
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not math.isfinite(loss):
        raise _damaged(path, f"{KEY}.loss", "a number", loss)
    length = value.get("sequence_length")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise _damaged(path, f"{KEY}.sequence_length", "a positive integer", length)
    return ReferenceLoss(
        loss=float(loss),
        text=_sha256(value, "text", path),
        ids=_sha256(value, "ids", path),
        sequence_length=length,
        precision=str(value.get("precision")),
    )


def _sha256(value: Mapping[str, Any], name: str, path: object) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not _SHA256.fullmatch(found):
        raise _damaged(path, f"{KEY}.{name}", "a SHA-256 in lower-case hex", found)
    return found


def _damaged(path: object, field: str, expected: str, found: object) -> FormatError:
    problem = "the reference loss in the file cannot be read"
    return FormatError(problem, path=path, field=field, expected=expected, found=f"{found!r:.60}", hint=_HINT)
